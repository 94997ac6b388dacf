"""What is seen in an image: boxes with a class and a score, from a detector or from a record.

A Detector looks at pixels, uint8 (h, w, 3). A RecordedDetector looks up an image's key, its path relative to the
layout's directory ("00012/samples/00003.png"): it stands for a detector that ran elsewhere. Boxes are (x_0, y_0, x_1,
y_1) in pixels, x to the right and y DOWN, the last column and row excluded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fgm.utils.errors import UserError

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object, compared by identity.

    Attributes:
        cls: name of the class, in the prompts' words.
        box: corners in pixels.
        score: confidence in [0, 1].
        mask: its pixels, bool (h, w), where the detector has them.
        colour: where the detector knows it; otherwise a ColourClassifier is asked when a prompt wants to know.
    """

    cls: str
    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None
    colour: str | None = None

    def __post_init__(self) -> None:
        if len(self.box) != 4 or not all(map(math.isfinite, self.box)) or not 0 <= self.score <= 1:
            raise ValueError(
                f"{self.cls}: box {self.box} needs four finite numbers, score {self.score} a value in [0, 1]"
            )


class Detector(Protocol):
    """Finds the objects of an image; protocol says with what."""

    @property
    def protocol(self) -> str: ...

    def detect(self, image: Pixels) -> list[Detection]: ...


class ColourClassifier(Protocol):
    """Names one of the colours for each of some objects of an image."""

    protocol: str

    def classify(self, image: Pixels, detections: Sequence[Detection]) -> list[str]: ...


@dataclass(frozen=True)
class RecordedDetector:
    """Detections that were made before, by key."""

    protocol: str
    detections: Mapping[str, Sequence[Detection]]

    def recall(self, key: str) -> list[Detection]:
        """
        Raises:
            UserError: the image was never looked at, which is not the same as nothing found.
        """
        if key not in self.detections:
            raise UserError(f"{self.protocol}: has no entry for {key}; an image without objects needs an empty list")
        return list(self.detections[key])
