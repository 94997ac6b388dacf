"""What a detector sees: boxes (x_0, y_0, x_1, y_1) in pixels with a class and a score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detection:
    """One object; score in [0, 1], mask bool (h, w), colour where the detector knows it."""

    cls: str
    box: tuple[float, float, float, float]
    score: float
    mask: NDArray[np.bool_] | None = None
    colour: str | None = None
