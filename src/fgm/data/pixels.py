"""Images as bytes: conversion to uint8, PNG files, and labels in a dataset.json beside them.

There is one conversion, since half a level more or less shifts every pixel and every FID:

    round    127.5 x + 127.5, rounded and clipped       EDM and its descendants
    floor    127.5 x + 127.5, truncated and clipped     DMD2, torchmetrics with normalize=True

EDM writes `x * 127.5 + 128` and truncates: the same as `round` except that exact halves go up there and to even here.

PIL reads PNGs, since torchvision.io returns the indices of a palette as if they were grey values.
"""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_text

Rounding = Literal["round", "floor"]
LABELS = "dataset.json"  # {"labels": [[file name, label], ...]}, the format of StyleGAN's and EDM's tools
PNG_END = b"IEND\xaeB`\x82"


def quantise(x: Tensor, mode: Rounding = "round") -> Tensor:
    """Convert [-1, 1] to uint8, clipped. Images that are uint8 already, as read from files, are returned unchanged."""
    if x.dtype == torch.uint8:
        return x
    rounding = {"round": torch.round, "floor": torch.floor}[mode]
    return rounding(x * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)


def dequantise(x: Tensor) -> Tensor:
    """Convert uint8 to float32 in [-1, 1]. Floats are returned unchanged."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x


def encode_png(image: Tensor) -> bytes:
    """Return the PNG of one image, uint8 (1 or 3, h, w)."""
    pixels = image.cpu().numpy()
    return encode_array(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def encode_array(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG of an array (h, w) or (h, w, 3)."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def decode_png(content: bytes, path: Path) -> Tensor:
    """Return the image of a grey or RGB PNG, uint8 (1 or 3, h, w).

    Raises:
        UserError: the file is damaged, or of another mode.
    """
    with damaged_png(path):
        image = open_png(content)
        pixels = np.array(image)
    if image.mode not in ("L", "RGB"):
        raise UserError(f"{path}: has mode {image.mode}; convert the images to 8-bit grey (L) or RGB")
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(-1, 0).contiguous()


def open_png(content: bytes) -> Image.Image:
    """Open a PNG whose end is there; use it within damaged_png, since PIL decodes the pixels on first access."""
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    if not content.endswith(PNG_END):
        raise EOFError
    return image


@contextmanager
def damaged_png(path: Path) -> Iterator[None]:
    """Turn what PIL raises for a missing, truncated, corrupt or oversized PNG into a UserError."""
    try:
        yield
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "truncated" if isinstance(error, EOFError) else getattr(error, "strerror", None) or "does not decode"
        raise UserError(f"{path}: damaged PNG ({reason}); create it again") from error


def labels_json(names: Iterable[str], labels: Tensor | None) -> bytes:
    """Return the content of a dataset.json."""
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels.tolist(), strict=True)]
    return json.dumps({"labels": pairs}).encode()


def read_labels(directory: Path, names: list[str]) -> Tensor | None:
    """Return the labels (n,) of the named images from the directory's dataset.json, or None if it has no labels."""
    path = directory / LABELS
    return parse_labels(read_text(path, "labels"), str(path), names, "remove the file") if path.exists() else None


def parse_labels(content: str, where: str, names: list[str], remedy: str) -> Tensor | None:
    """Return the labels (n,) of the named images from the text of a dataset.json, or None if it has no labels.

    Raises:
        UserError: a named image has no label, or a label is not an integer.
    """
    pairs = parse_object(content, where).get("labels")
    if pairs is None:
        return None
    try:
        by_name = {str(name): label for name, label in pairs}
        if any(type(label) is not int for label in by_name.values()):
            raise TypeError("a label is not an integer")
        return torch.tensor([by_name[name] for name in names], dtype=torch.int64)
    except KeyError as error:
        raise UserError(f"{where}: no label for {error.args[0]}; add it, or {remedy}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: labels must be a list of [name, integer]; correct it, or {remedy}") from error
