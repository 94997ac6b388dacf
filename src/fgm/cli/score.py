"""python -m fgm.cli.score geneval_dir=<folder> metadata=<file>.jsonl detections=<file>.json: GenEval's score.

    detector=json           recorded detections=, .json of another tool or results.jsonl; vocabulary=geneval or shapes
    detector=mask2former    boxes by the weights in detector_dir=, colors by those in clip_dir=, which you provide
    detector=shapes         ShapeEval's exact detector

samples=4 is the number of images for each prompt; nfe= and weights= describe their sampler. out= or <geneval_dir>/score
gets results.jsonl with the grades in the official schema and results.json with the scores and their provenance.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from fgm.cli.command import Command
from fgm.cli.runs import commit, device_of_rank
from fgm.data.geneval import GENEVAL, Metadata, read_prompts
from fgm.data.shapes.captions import VOCABULARY
from fgm.evaluation.geneval.detectors import CLIPColors, Mask2FormerDetector
from fgm.evaluation.geneval.folder import RecordedDetections, score_folder
from fgm.evaluation.geneval.metric import GenEval
from fgm.evaluation.geneval.rules import OFFICIAL
from fgm.evaluation.shapes.detector import ShapeDetector
from fgm.evaluation.shapes.metric import RULES
from fgm.utils.errors import UserError

NEEDED = {"json": ("detections",), "mask2former": ("detector_dir", "clip_dir"), "shapes": ()}


@dataclass(frozen=True)
class Settings:
    geneval_dir: str | None = None
    metadata: str | None = None
    detections: str | None = None
    detector: Literal["json", "mask2former", "shapes"] = "json"
    detector_dir: str | None = None
    clip_dir: str | None = None
    samples: PositiveInt = 4
    vocabulary: Literal["geneval", "shapes"] = "geneval"
    out: str | None = None
    nfe: NonNegativeInt = 0
    weights: Literal["folder", "ema", "raw", "teacher", "real"] = "folder"


def run(_: None, settings: Settings) -> None:
    files = {key: str(getattr(settings, key) or "") for key in ("geneval_dir", "metadata", *NEEDED[settings.detector])}
    for key in files:
        if not files[key]:
            raise UserError(f"{key}= is missing: give {key}=...")
    began, device = time.perf_counter(), device_of_rank()
    shapes = settings.detector == "shapes" or (settings.detector, settings.vocabulary) == ("json", "shapes")
    prompts = prompts_of(files["metadata"], "shapes" if shapes else "geneval")
    detector = {
        "json": lambda: RecordedDetections.from_file(files["detections"], VOCABULARY if shapes else GENEVAL),
        "mask2former": lambda: Mask2FormerDetector(settings.detector_dir, str(device)),
        "shapes": ShapeDetector,
    }[settings.detector]()
    colors = CLIPColors(settings.clip_dir, str(device)) if settings.clip_dir else None
    metric, name = GenEval(detector, colors, RULES if shapes else OFFICIAL), "shapeeval" if shapes else "geneval"
    score = score_folder(metric, Path(files["geneval_dir"]), prompts, settings.samples)
    measurement = score.scores.measurement(metric.protocol(prompts), settings.nfe, settings.weights, name)
    read = {key: path for key, path in files.items() if key in ("metadata", "detections")}
    out, seconds = Path(settings.out or f"{files['geneval_dir']}/score"), time.perf_counter() - began
    score.write(out, measurement, read, device, seconds, commit())
    print(f"{score.scores.describe(name)}\n({measurement.protocol})\ngrades, and scores with their provenance: {out}")


def prompts_of(metadata: str, vocabulary: Literal["geneval", "shapes"]) -> list[Metadata]:
    return read_prompts(Path(metadata), {"geneval": GENEVAL, "shapes": VOCABULARY}[vocabulary])


main = Command("score", run, Settings, experiment=None)

if __name__ == "__main__":
    main.main()
