"""Objects in images: what detectors return, and the records of detectors that ran elsewhere.

Boxes are (x_0, y_0, x_1, y_1) in pixels, x to the right and y DOWN, without the last column and row.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fgm.data.geneval import GENEVAL, Vocabulary, require_keys, require_known
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_lines, read_text

Pixels = NDArray[np.uint8]  # (h, w, 3)
Box = tuple[float, float, float, float]
HOLDS = "detections by image"


@dataclass(frozen=True, eq=False)
class Detection:
    """One object, compared by identity.

    Attributes:
        cls: class name, in the words of the prompts.
        box: corners in pixels.
        score: confidence in [0, 1].
        mask: the object's pixels, bool (h, w), if the detector returns them.
        color: if the detector returns it; a ColorClassifier adds it when a prompt needs it.
    """

    cls: str
    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        if len(self.box) != 4 or not all(map(math.isfinite, self.box)) or not 0 <= self.score <= 1:
            raise ValueError(f"{self.cls}: box {self.box} must be four finite numbers, score {self.score} in [0, 1]")


class Detector(Protocol):
    """Finds the objects of an image; `protocol` identifies it."""

    @property
    def protocol(self) -> str: ...

    def detect(self, image: Pixels) -> list[Detection]: ...


class ColorClassifier(Protocol):
    """Names the color of each detection in an image; `protocol` identifies it."""

    protocol: str

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]: ...


@dataclass(frozen=True)
class RecordedDetections:
    """Detections that were made earlier, by the image's path relative to its folder: 00012/samples/00003.png."""

    protocol: str
    detections: Mapping[str, Sequence[Detection]]

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
