"""From images in [-1, 1] to bytes and back, in one place: half a level more or less shifts every pixel and every FID.

    round    127.5 x + 127.5 to the nearest whole number, clipped     EDM and its descendants
    floor    127.5 x + 127.5 cut off, clipped                         DMD2, torchmetrics with normalize=True

EDM writes `x * 127.5 + 128` and cuts off; that is `round` but at exact halves, which go up there and to even here.
"""

from typing import Literal

import torch
from torch import Tensor

Mode = Literal["round", "floor"]
MODES = {"round": torch.round, "floor": torch.floor}


def quantise(x: Tensor, mode: Mode = "round") -> Tensor:
    """[-1, 1] to uint8, clipped; uint8 is passed through, so that images read from files are taken as they are."""
    if x.dtype == torch.uint8:
        return x
    return MODES[mode](x * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)


def dequantise(x: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]; floats are passed through, so that a split of either kind is read alike."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
