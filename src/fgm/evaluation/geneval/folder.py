"""The folder of images that GenEval's official evaluator reads, and the results.jsonl that it writes.

    <directory>/<index, 5 digits>/metadata.jsonl                         the prompt's metadata, one JSON object
    <directory>/<index, 5 digits>/samples/<ordinal, 5 digits>.png

Indices count prompts from 0, ordinals the samples of one prompt. Folders of 4 digits and files of any number of digits
are read too. Files are written atomically. A score of an incomplete set looks like any other score, so a folder without
all samples of all prompts is an error, and so is one that was made for other prompts. One line of results.jsonl has

    filename    <index>/samples/<ordinal>.png; the official one starts with the evaluator's own path
    tag, prompt
    correct     true or false
    reason      the failures, one a line, "" if correct
    metadata    the prompt's metadata, as JSON text
    details     the boxes that count, {class: [[x_0, y_0, x_1, y_1, score], ...]}, as JSON text

so that the official summary_scores.py reads our files, and detections.py either evaluator's boxes.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps

from fgm.data.geneval import Metadata, digest
from fgm.data.pixels import damaged_png, encode_array, open_png
from fgm.evaluation.geneval.detections import Pixels, RecordedDetections
from fgm.evaluation.geneval.metric import GenEval
from fgm.evaluation.prompt_score import Scores, summarize
from fgm.evaluation.provenance import definition, record
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_text, sha256_of, write_bytes, write_lines
from fgm.utils.records import Measurement, write_json

FOLDER, FILE = re.compile(r"\d{4,5}"), re.compile(r"\d+\.png")
SHOWN = 3  # items in an error message


@dataclass(frozen=True, order=True)
class Sample:
    """The image number `ordinal` of prompt number `index`."""

    index: int
    ordinal: int
    path: Path

    @property
    def key(self) -> str:
        """Return the path relative to the folder."""
        return "/".join(self.path.parts[-3:])

    def pixels(self) -> Pixels:
        return read_png(self.path)


@dataclass(frozen=True)
class Result:
    """The grade of one image, and the boxes that count by class."""

    filename: str
    metadata: Metadata
    correct: bool
    reason: str
    details: dict[str, list[list[float]]]

    def line(self) -> str:
        row = {"filename": self.filename, "tag": self.metadata.tag, "prompt": self.metadata.prompt}
        row |= {"correct": self.correct, "reason": self.reason, "metadata": self.metadata.line()}
        return json.dumps(row | {"details": json.dumps(self.details)})


def write_sample(directory: Path, index: int, ordinal: int, metadata: Metadata, pixels: Pixels) -> Path:
    """Write one image and its prompt's metadata.

    Raises:
        UserError: the folder has the metadata of another prompt.
    """
    folder = directory / f"{index:05d}"
    path = folder / "samples" / f"{ordinal:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "metadata.jsonl").exists():
        require_prompt(folder, metadata)
    else:
        write_bytes(folder / "metadata.jsonl", metadata.line().encode())
    write_bytes(path, encode_array(pixels))
    return path


def read_layout(directory: Path, prompts: Sequence[Metadata], per_prompt: int) -> list[Sample]:
    """List all samples, by index and ordinal.

    Raises:
        UserError: a prompt or a sample is missing, unexpected or a duplicate, or a folder has another prompt.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is missing: it should hold folders such as 00000/samples")
    samples = sorted(
        Sample(int(path.parts[-3]), int(path.stem), path)
        for path in directory.glob("*/samples/*.png")
        if FOLDER.fullmatch(path.parts[-3]) and FILE.fullmatch(path.name)
    )
    require_complete([(sample.index, sample.ordinal) for sample in samples], len(prompts), per_prompt, directory)
    for folder, index in {sample.path.parents[1]: sample.index for sample in samples}.items():
        require_prompt(folder, prompts[index])
    return samples


def require_complete(found: Sequence[tuple[int, int]], prompts: int, per_prompt: int, where: Path) -> None:
    """Raise unless `found` has every (index, ordinal) exactly once and no other."""
    expected = {(index, ordinal) for index in range(prompts) for ordinal in range(per_prompt)}
    absent = sorted(set(range(prompts)) - {index for index, _ in found})
    for problem, items, total in (
        ("prompts are missing", [f"{index:05d}" for index in absent], f" of {prompts}"),
        ("samples are missing", sample_names(expected - set(found)), f" of {len(expected)}"),
        ("samples are unexpected", sample_names(set(found) - expected), ""),
        ("samples are duplicates", sample_names(s for s, times in Counter(found).items() if times > 1), ""),
    ):
        if items:
            more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
            raise UserError(
                f"{where}: {len(items)}{total} {problem}: {', '.join(items[:SHOWN])}{more}; it should hold {prompts} "
                f"prompts with {per_prompt} samples each"
            )


def sample_names(samples: Iterable[tuple[int, int]]) -> list[str]:
    return [f"{index:05d}/samples/{ordinal:05d}" for index, ordinal in sorted(samples)]


def require_prompt(folder: Path, metadata: Metadata) -> None:
    """Raise unless the folder has these metadata, in any order of the keys."""
    path = folder / "metadata.jsonl"
    row = parse_object(read_text(path, f"the metadata of {metadata.prompt!r}"), str(path))
    if row != json.loads(metadata.line()):
        raise UserError(f"{path}: is not the metadata of {metadata.prompt!r}; the images were made for other prompts")


def read_png(path: Path) -> Pixels:
    """Read an image as uint8 (h, w, 3), upright.

    Raises:
        UserError: the file is missing, truncated or no PNG.
    """
    with damaged_png(path):
        return np.asarray(ImageOps.exif_transpose(open_png(path.read_bytes())).convert("RGB"))


def grade_samples(metric: GenEval, samples: Sequence[Sample], prompts: Sequence[Metadata]) -> list[Result]:
    """Grade samples in their order; with recorded detections an image is read only for the color classifier."""
    results, detector = [], metric.detector
    for sample in samples:
        metadata = prompts[sample.index]
        if isinstance(detector, RecordedDetections):
            detections = detector.recall(sample.key)
        else:
            detections = metric.detect(sample.pixels())
        selected, grade = metric.grade(detections, metadata, sample.pixels)
        boxes = {cls: [[*map(float, d.box), float(d.score)] for d in found] for cls, found in selected.items()}
        results.append(Result(sample.key, metadata, grade.correct, grade.reason, boxes))
    return results


@dataclass(frozen=True)
class FolderScore:
    """The grades of a complete folder, its scores, and what defines its content."""

    results: list[Result]
    scores: Scores
    source: dict[str, Any]


def score_folder(metric: GenEval, directory: Path, prompts: Sequence[Metadata], per_prompt: int) -> FolderScore:
    """Grade and score a folder that has per_prompt images of every prompt."""
    samples = read_layout(directory, prompts, per_prompt)
    results = grade_samples(metric, samples, prompts)
    return FolderScore(results, scores_of(results), describe(samples, prompts))


def scores_of(results: Sequence[Result]) -> Scores:
    folders = [result.filename.partition("/")[0] for result in results]  # one for each prompt
    return summarize([result.metadata.tag for result in results], folders, [result.correct for result in results])


def describe(samples: Sequence[Sample], prompts: Sequence[Metadata]) -> dict[str, Any]:
    """Return all that defines a complete folder, as plain containers for provenance.definition."""
    content = sha256()
    for sample in samples:
        content.update(sample.path.read_bytes())
    per_prompt = len(samples) // len(prompts)
    return {"kind": "geneval", "sha256": content.hexdigest(), "prompts": digest(prompts), "per_prompt": per_prompt}


def write_score(
    out: Path, score: FolderScore, measurement: Measurement, files: Mapping[str, str], device: torch.device,
    seconds: float, commit: str | None,
) -> None:  # fmt: skip
    """Write results.jsonl, and results.json with the score and its provenance; `files` were read for it, by name."""
    suite = {"metric": measurement.metric, "protocol": measurement.protocol}
    suite |= {f"{name}_sha256": sha256_of(Path(path)) for name, path in files.items()}
    evaluation = definition(score.source, suite, len(score.results), len(score.results))
    content = record(evaluation, [measurement], device, 1, {"wall": round(seconds, 2)})
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / "results.jsonl", score.results)
    write_json(out / "results.json", content | {"commit": commit})


def write_results(path: Path, results: Iterable[Result]) -> None:
    write_lines(path, (result.line() for result in results))
