"""python -m fgm.cli.score geneval_dir=<folder> metadata=<file>.jsonl detections=<file>.json: GenEval's score.

    detector=json           recorded detections=<file>, .json of another tool or results.jsonl (default)
    detector=mask2former    boxes by the weights in detector_dir=, colors by those in clip_dir=, which you provide
    detector=shapes         ShapeEval's exact detector; vocabulary=shapes

clip_dir= adds colors to recorded detections too. samples=4 is the number of images for each prompt; nfe= and weights=
describe their sampler. out=, <geneval_dir>/score unless given, gets results.jsonl with the grades in the official schema
and results.json with the scores and their provenance.
"""

import time
from pathlib import Path
from typing import Any

from fgm.cli.arguments import choice, read_settings, required, whole
from fgm.cli.runs import commit, device_of_rank
from fgm.utils.errors import UserError, entry

OWN = {
    "geneval_dir": "", "metadata": "", "detections": "", "detector": "json", "detector_dir": "", "clip_dir": "",
    "samples": "4", "vocabulary": "geneval", "out": "", "nfe": "0", "weights": "folder",
}  # fmt: skip
WEIGHTS = ("folder", "ema", "raw", "teacher", "real")
METRICS = {"geneval": "geneval", "shapes": "shapeeval"}  # by vocabulary
VOCABULARIES = {"mask2former": "geneval", "shapes": "shapes"}  # of the detectors that have one
NEEDS = {"json": ("detections",), "mask2former": ("detector_dir", "clip_dir"), "shapes": ()}


def main(arguments: list[str]) -> None:
    own = read_settings(arguments, OWN)
    required(own, "geneval_dir", "metadata", *NEEDS[choice(own, "detector", tuple(NEEDS))])
    each, nfe = whole(own, "samples", 1), whole(own, "nfe")
    choice(own, "weights", WEIGHTS)
    known = VOCABULARIES.get(own["detector"], own["vocabulary"])
    if choice(own, "vocabulary", tuple(METRICS)) != known:
        raise UserError(f"detector = {own['detector']} knows only the classes of vocabulary={known}: give that")
    prompts, began = read_questions(own), time.perf_counter()
    from fgm.evaluation.geneval.folder import score_folder, write_score

    metric = metric_of(own)
    score = score_folder(metric, Path(own["geneval_dir"]), prompts, each)
    measurement = score.scores.measurement(metric.protocol(prompts), nfe, own["weights"], METRICS[own["vocabulary"]])
    files = {"metadata": own["metadata"]} | {key: own[key] for key in NEEDS["json"] if own["detector"] == "json"}
    out = Path(own["out"] or f"{own['geneval_dir']}/score")
    write_score(out, score, measurement, files, device_of_rank(), time.perf_counter() - began, commit())
    low, high = score.scores.interval
    print(
        f"{measurement.metric} {measurement.value:.4f}, 95 % interval {low:.4f} to {high:.4f}, {measurement.n} images"
    )
    print("  ".join(f"{tag} {value:.3f}" for tag, value in score.scores.tags.items()))
    print(f"images {score.scores.images:.4f}  prompts {score.scores.prompts:.4f}  ({measurement.protocol})")
    print(f"grades, and scores with their provenance: {out}")


def read_questions(own: dict[str, str]) -> list[Any]:
    """Read the prompts of metadata=."""
    from fgm.data.geneval import read_prompts

    return read_prompts(Path(own["metadata"]), vocabulary_of(own))


def vocabulary_of(own: dict[str, str]) -> Any:
    from fgm.data.geneval import GENEVAL
    from fgm.data.shapes.captions import VOCABULARY

    return {"geneval": GENEVAL, "shapes": VOCABULARY}[choice(own, "vocabulary", tuple(METRICS))]


def metric_of(own: dict[str, str]) -> Any:
    """Return GenEval with the chosen detector and the rules of its vocabulary."""
    from fgm.evaluation.geneval.detections import RecordedDetections
    from fgm.evaluation.geneval.detectors import CLIPColors, Mask2FormerDetector
    from fgm.evaluation.geneval.metric import GenEval
    from fgm.evaluation.geneval.rules import OFFICIAL
    from fgm.evaluation.shapes.detector import ShapeDetector
    from fgm.evaluation.shapes.metric import RULES

    device = str(device_of_rank())
    make = {
        "json": lambda: RecordedDetections.from_file(own["detections"], vocabulary_of(own)),
        "mask2former": lambda: Mask2FormerDetector(own["detector_dir"], device),
        "shapes": ShapeDetector,
    }
    colors = CLIPColors(own["clip_dir"], device) if own["clip_dir"] else None
    return GenEval(make[own["detector"]](), colors, RULES if own["vocabulary"] == "shapes" else OFFICIAL)


if __name__ == "__main__":
    entry(main, __doc__)
