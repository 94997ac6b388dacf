"""python -m fgm.cli.score geneval_dir=<folder> metadata=<file>.jsonl detections=<file>.json: GenEval's score.

    detector=json           boxes, and colours where it has them, from detections=: what another tool wrote (default)
    detector=mask2former    boxes by the weights in detector_dir=, colours by those in clip_dir=; you hold both
    detector=shapes         ShapeEval's exact detector; vocabulary=shapes

metadata=grammar stands for 553 prompts of our own grammar, which are no published benchmark.
clip_dir= finds colours for json too. samples=4 pictures a prompt; nfe= and weights= say what drew them. Results
go to out=, <geneval_dir>/score unless given: results.jsonl with the verdicts in the official schema, and results.json
with the scores and their provenance.
"""

import time
from pathlib import Path
from typing import Any

from fgm.cli.arguments import choice, read_settings, required, whole
from fgm.cli.evaluators import device_of_rank
from fgm.cli.recording import commit
from fgm.data.text.geneval.vocabulary import GRAMMAR
from fgm.utils.errors import UserError, entry
from fgm.utils.files import sha256_of
from fgm.utils.records import write_json

OWN = {
    "geneval_dir": "", "metadata": "", "detections": "", "detector": "json", "detector_dir": "", "clip_dir": "",
    "samples": "4", "vocabulary": "geneval", "out": "", "nfe": "0", "weights": "folder",
}  # fmt: skip
WEIGHTS = ("folder", "ema", "raw", "teacher", "real")
METRICS = {"geneval": "geneval", "shapes": "shapeeval"}  # by vocabulary
SEES = {"mask2former": "geneval", "shapes": "shapes"}  # vocabularies of the detectors that have one
NEEDS = {"json": ("detections",), "mask2former": ("detector_dir", "clip_dir"), "shapes": ()}


def main(arguments: list[str]) -> None:
    own = read_settings(arguments, OWN)
    required(own, "geneval_dir", "metadata", *NEEDS[choice(own, "detector", tuple(NEEDS))])
    each, nfe = whole(own, "samples", 1), whole(own, "nfe")
    choice(own, "weights", WEIGHTS)
    sees = SEES.get(own["detector"], own["vocabulary"])
    if choice(own, "vocabulary", tuple(METRICS)) != sees:
        raise UserError(f"detector = {own['detector']} sees nothing but the classes of vocabulary={sees}: give that")
    if not Path(own["geneval_dir"]).is_dir():
        raise UserError(
            f"geneval_dir = {own['geneval_dir']} is no folder: it should hold folders such as 00000/samples"
        )
    prompts = read_questions(own)
    judge, began = judge_of(own), time.perf_counter()
    from fgm.evaluation.geneval.layout import describe, read_layout
    from fgm.evaluation.geneval.scores import summarise

    samples = read_layout(Path(own["geneval_dir"]), prompts, each)
    results = judge.evaluate(samples, prompts)
    scores, source = summarise(results, prompts, each), describe(samples, prompts)
    measurement = scores.measurement(judge.protocol(prompts), nfe, own["weights"], METRICS[own["vocabulary"]])
    out = Path(own["out"] or f"{own['geneval_dir']}/score")
    write(out, own, source, results, measurement, time.perf_counter() - began)
    tell(scores, measurement)


def read_questions(own: dict[str, str]) -> list[Any]:
    """The prompts of metadata=, of which those of the grammar are GenEval's words."""
    vocabulary = vocabulary_of(own)
    if own["metadata"] == GRAMMAR and own["vocabulary"] != "geneval":
        raise UserError(f"metadata = {GRAMMAR} speaks of GenEval's objects: leave vocabulary={own['vocabulary']} out")
    from fgm.data.prompts import geneval_metadata

    return geneval_metadata(own["metadata"], vocabulary=vocabulary)


def vocabulary_of(own: dict[str, str]) -> Any:
    if choice(own, "vocabulary", tuple(METRICS)) == "shapes":
        from fgm.evaluation.shape_prompts import VOCABULARY

        return VOCABULARY
    from fgm.data.text.geneval.vocabulary import GENEVAL

    return GENEVAL


def judge_of(own: dict[str, str]) -> Any:
    """The judge with the detector that was chosen, by the rules of its words, as make eval judges them."""
    from fgm.evaluation.geneval.evaluate import GenEval

    return GenEval(detector_of(own), colours_of(own["clip_dir"]), rules_of(own["vocabulary"]))


def rules_of(vocabulary: str) -> Any:
    if vocabulary == "shapes":
        from fgm.evaluation.shape_eval import RULES

        return RULES
    from fgm.evaluation.geneval.rules import OFFICIAL

    return OFFICIAL


def detector_of(own: dict[str, str]) -> Any:
    if own["detector"] == "json":
        from fgm.evaluation.geneval.json_detector import JsonDetector

        return JsonDetector(own["detections"], vocabulary_of(own))
    if own["detector"] == "shapes":
        from fgm.evaluation.shape_detector import ShapeDetector

        return ShapeDetector()
    from fgm.evaluation.geneval.mask2former import Mask2FormerDetector

    return Mask2FormerDetector(own["detector_dir"], str(device_of_rank()))


def colours_of(directory: str) -> Any:
    if not directory:
        return None
    from fgm.evaluation.geneval.clip_colour import ClipColours

    return ClipColours(directory, str(device_of_rank()))


def write(
    out: Path, own: dict[str, str], source: dict[str, Any], results: list[Any], measurement: Any, seconds: float
) -> None:
    """The verdicts, and the score with its provenance."""
    from fgm.evaluation.geneval.results import write_results
    from fgm.evaluation.provenance import definition, record

    files = ("metadata", "detections") if own["detector"] == "json" else ("metadata",)
    hashes = {f"{key}_sha256": sha256_of(Path(own[key])) for key in files if own[key] != GRAMMAR}
    suite = {"metric": measurement.metric, "protocol": measurement.protocol} | hashes
    evaluation = definition(source, suite, len(results), len(results))
    told = record(evaluation, [measurement], device_of_rank(), 1, {"wall": round(seconds, 2)})
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / "results.jsonl", results)
    write_json(out / "results.json", told | {"commit": commit()})
    print(f"verdicts and scores with their provenance: {out}")


def tell(scores: Any, measurement: Any) -> None:
    low, high = scores.interval
    print(f"{measurement.metric} {scores.overall:.4f}, 95 % interval {low:.4f} to {high:.4f}, {scores.n} pictures")
    print("  ".join(f"{tag} {value:.3f}" for tag, value in scores.tags.items()))
    print(f"pictures {scores.images:.4f}  prompts {scores.prompts:.4f}  ({measurement.protocol})")


if __name__ == "__main__":
    entry(main, __doc__)
