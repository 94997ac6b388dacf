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

so that the official summary_scores.py reads our files, and RecordedDetections either evaluator's boxes.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch

from fgm.data.folders import image_names, list_files
from fgm.data.geneval import GENEVAL, Metadata, Vocabulary, digest, require_keys, require_known
from fgm.data.pixels import decode_rgb, encode_array, read_image, require_png
from fgm.evaluation.evaluator import definition, record
from fgm.evaluation.geneval.metric import GenEval
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.evaluation.prompt_score import Scores, summarize
from fgm.evaluation.sources import SampleSource, atomic_folder, batches
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_lines, read_text, sha256_of, write_bytes, write_lines
from fgm.utils.records import Measurement, write_json

IN_SAMPLES, SAMPLE = re.compile(r"\d{4,5}/samples/"), re.compile(r"(\d{4,5})/samples/(\d+)\.png", re.IGNORECASE)
SHOWN = 3  # items in an error message
HOLDS = "detections by image"


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


def export_geneval(source: SampleSource, out: Path, prompts: Sequence[Metadata], per_prompt: int, batch: int) -> None:
    """Write sample i of the source as sample i modulo per_prompt of prompt i // per_prompt; grey becomes RGB."""
    with atomic_folder(out) as folder:
        for indices, samples in batches(source, batch):
            for i, image in zip(indices, samples.x, strict=True):
                index, ordinal = divmod(i, per_prompt)
                pixels = image.expand(3, -1, -1).movedim(0, -1).contiguous().cpu().numpy()
                write_sample(folder, index, ordinal, prompts[index], pixels)


def require_prompt(folder: Path, metadata: Metadata) -> None:
    """Raise unless the folder has these metadata, in any order of the keys."""
    path = folder / "metadata.jsonl"
    row = parse_object(read_text(path, f"the metadata of {metadata.prompt!r}"), str(path))
    if row != json.loads(metadata.line()):
        raise UserError(f"{path}: is not the metadata of {metadata.prompt!r}; the images were made for other prompts")


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
        """Read an image as uint8 (h, w, 3)."""
        return decode_rgb(read_image(self.path), self.path)


def read_layout(directory: Path, prompts: Sequence[Metadata], per_prompt: int) -> list[Sample]:
    """List all samples, by index and ordinal.

    Raises:
        UserError: a prompt or a sample is missing, unexpected, a duplicate or no PNG, or a folder has another prompt.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is missing: it should hold folders such as 00000/samples")
    files = [name for name in list_files(directory) if IN_SAMPLES.match(name)]
    names = [match for name in image_names(files, directory) if (match := SAMPLE.fullmatch(name))]
    samples = sorted(Sample(int(name[1]), int(name[2]), directory / name[0]) for name in names)
    require_complete([(sample.index, sample.ordinal) for sample in samples], len(prompts), per_prompt, directory)
    for folder, index in {sample.path.parents[1]: sample.index for sample in samples}.items():
        require_prompt(folder, prompts[index])
    return samples


def require_complete(found: Sequence[tuple[int, int]], prompts: int, per_prompt: int, where: Path) -> None:
    """Raise unless `found` has every (index, ordinal) exactly once and no other."""
    expected = {(index, ordinal) for index in range(prompts) for ordinal in range(per_prompt)}
    absent = sorted(set(range(prompts)) - {index for index, _ in found})
    repeated = {sample for sample, times in Counter(found).items() if times > 1}
    for problem, samples, total in (
        ("samples are missing", expected - set(found), f" of {len(expected)}"),
        ("samples are unexpected", set(found) - expected, ""),
        ("samples are duplicates", repeated, ""),
    ):
        items = [f"{index:05d}/samples/{ordinal:05d}" for index, ordinal in sorted(samples)]
        if absent:
            problem, items, total = "prompts are missing", [f"{index:05d}" for index in absent], f" of {prompts}"
        if items:
            more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
            raise UserError(
                f"{where}: {len(items)}{total} {problem}: {', '.join(items[:SHOWN])}{more}; it should hold {prompts} "
                f"prompts with {per_prompt} samples each"
            )


@dataclass(frozen=True)
class RecordedDetections:
    """Detections that were made earlier, by the image's path relative to its folder: 00012/samples/00003.png."""

    protocol: str
    detections: Mapping[str, Sequence[Detection]]

    def detect(self, image: Pixels) -> list[Detection]:
        raise UserError(f"{self.protocol}: belong to the images of a folder; give a detector, or score_folder")

    def recall(self, key: str) -> list[Detection]:
        """Return the detections in an image.

        Raises:
            UserError: the image has no entry, which differs from an entry without objects.
        """
        if key not in self.detections:
            raise UserError(
                f"{self.protocol}: there is no entry for {key}; an image without objects needs an empty one"
            )
        return list(self.detections[key])

    @classmethod
    def from_file(cls, path: Path | str, vocabulary: Vocabulary = GENEVAL) -> Self:
        """Read a .json file of another tool, or the results.jsonl of this or the official evaluator.

            .json     {IMAGE: [{"class": NAME, "box": [x_0, y_0, x_1, y_1], "score": S[, "color": COLOR]}, ...], ...}
            .jsonl    {"filename": IMAGE, "details": "{NAME: [[x_0, y_0, x_1, y_1, score], ...], ...}", ...}

        A results.jsonl has no colors. IMAGE may be an absolute path; only its last three parts count.
        """
        path, detections = Path(path), dict[str, list[Detection]]()
        for where, name, entries in (read_json if path.suffix == ".json" else read_results)(path):
            key = "/".join(PurePosixPath(name).parts[-3:])
            if key in detections:
                raise UserError(f"{where}: {key} is a duplicate; keep one of them")
            detections[key] = [
                parse_detection(entry, f"{where}, {key}, entry {i}", vocabulary) for i, entry in enumerate(entries)
            ]
        return cls(f"detections from {path.name}", detections)


def read_json(path: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield (where, image, entries)."""
    for name, entries in parse_object(read_text(path, HOLDS), str(path)).items():
        if not isinstance(entries, list):
            raise UserError(f"{path}, {name}: must be a list of detections, not {json.dumps(entries)[:40]}")
        yield str(path), name, entries


def read_results(path: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield (where, image, entries)."""
    for where, line in read_lines(path, HOLDS):
        row = parse_object(line, where)
        if not isinstance(row.get("filename"), str) or not isinstance(row.get("details"), str):
            raise UserError(f"{where}: needs the texts filename and details, as in results.jsonl")
        details = parse_object(row["details"], f"{where}, details")
        try:
            boxes = [(cls, box) for cls, boxes in details.items() for box in boxes]
            yield where, row["filename"], [{"class": cls, "box": box[:4], "score": box[4]} for cls, box in boxes]
        except (TypeError, IndexError, KeyError) as error:
            raise UserError(f"{where}, details: must be lists of [x_0, y_0, x_1, y_1, score] by class") from error


def parse_detection(entry: Any, where: str, vocabulary: Vocabulary) -> Detection:
    require_keys(entry, {"class", "box", "score"}, set(entry) if isinstance(entry, dict) else set(), where)
    require_known("class", entry["class"], vocabulary.classes, where)
    if entry.get("color") is not None:
        require_known("color", entry["color"], vocabulary.colors, where)
    try:
        x_0, y_0, x_1, y_1 = map(float, entry["box"])
        return Detection(entry["class"], (x_0, y_0, x_1, y_1), float(entry["score"]), color=entry.get("color"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: box must be four finite numbers and score one in [0, 1]") from error


@dataclass(frozen=True)
class FolderScore:
    """The rows of results.jsonl of a complete folder, its scores, and what defines its content."""

    results: list[dict[str, Any]]
    scores: Scores
    source: dict[str, Any]

    def write(
        self, out: Path, measurement: Measurement, files: Mapping[str, str], device: torch.device, seconds: float,
        commit: str | None,
    ) -> None:  # fmt: skip
        """Write results.jsonl, and results.json with the score and its provenance; `files` were read for it, by name."""
        suite = {"metric": measurement.metric, "protocol": measurement.protocol}
        suite |= {f"{name}_sha256": sha256_of(Path(path)) for name, path in files.items()}
        evaluation = definition(self.source, suite, len(self.results), len(self.results))
        content = record(evaluation, [measurement], device, 1, {"wall": round(seconds, 2)})
        out.mkdir(parents=True, exist_ok=True)
        write_lines(out / "results.jsonl", map(json.dumps, self.results))
        write_json(out / "results.json", content | {"commit": commit})


def score_folder(metric: GenEval, directory: Path, prompts: Sequence[Metadata], per_prompt: int) -> FolderScore:
    """Grade and score a folder that has per_prompt images of every prompt.

    With recorded detections images are only checked, unless the color classifier needs their pixels.
    """
    samples, results, content = read_layout(directory, prompts, per_prompt), [], sha256()
    for sample in samples:
        metadata, detector = prompts[sample.index], metric.detector
        recorded = isinstance(detector, RecordedDetections)
        detections = detector.recall(sample.key) if recorded else metric.detect(sample.pixels())
        selected, grade = metric.grade(detections, metadata, sample.pixels)
        boxes = {cls: [[*map(float, d.box), float(d.score)] for d in found] for cls, found in selected.items()}
        row = {"filename": sample.key, "tag": metadata.tag, "prompt": metadata.prompt, "correct": grade.correct}
        row |= {"reason": grade.reason, "metadata": metadata.line(), "details": json.dumps(boxes)}
        results.append(row)
        png = read_image(sample.path)
        require_png(png, sample.path)
        content.update(png)
    folders = [sample.key.partition("/")[0] for sample in samples]  # one for each prompt
    scores = summarize([row["tag"] for row in results], folders, [row["correct"] for row in results])
    source = {"sha256": content.hexdigest(), "prompts": digest(prompts), "per_prompt": per_prompt}
    return FolderScore(results, scores, {"kind": "geneval"} | source)
