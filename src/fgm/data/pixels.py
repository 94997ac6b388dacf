"""Images as bytes: conversion to uint8, PNG files, and labels in a dataset.json beside them.

There is one conversion, since half a level more or less shifts every pixel and every FID:

    round    127.5 x + 127.5, rounded and clipped       EDM and its descendants
    floor    127.5 x + 127.5, truncated and clipped     DMD2, torchmetrics with normalize=True

EDM writes `x * 127.5 + 128` and truncates: the same as `round` except that exact halves go up there and to even here.

PIL reads PNGs, since torchvision.io returns the indices of a palette as if they were grey values.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_text, stranger

Rounding = Literal["round", "floor"]
LABELS = "dataset.json"  # {"labels": [[file name, label], ...]}, the format of StyleGAN's and EDM's tools
PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_CLASSES = 2**31


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
    """Return the image of a grey or RGB PNG, uint8 (1 or 3, h, w), without losing anything that is in it.

    Raises:
        UserError: the file is damaged, or has a palette, transparency, more than 8 bits a channel or several frames.
    """
    image = open_png(content, path)
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        mode = f"mode {image.mode}" + (" with transparency" if "transparency" in image.info else "")
        raise UserError(f"{path}: has {mode}; convert the images to 8-bit grey (L) or RGB")
    return torch.from_numpy(np.atleast_3d(np.array(image))).movedim(-1, 0).contiguous()


def decode_rgb(content: bytes, path: Path) -> NDArray[np.uint8]:
    """Return a PNG of any mode as RGB, uint8 (h, w, 3), upright.

    Raises:
        UserError: as decode_png, except that palettes, 1-bit images and opaque alpha channels are read.
    """
    image = ImageOps.exif_transpose(open_png(content, path))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise UserError(f"{path}: has transparent pixels; put the image on a background")
    return np.asarray(image.convert("RGB"))


def open_png(content: bytes, path: Path) -> Image.Image:
    """Open and decode a complete PNG of at most 8 bits a channel and one frame.

    Raises:
        UserError: it is another file, damaged, or would be narrowed.
    """
    require_png(content, path)
    if content[24] > 8:  # PIL drops the low bytes of RGB
        raise UserError(f"{path}: has {content[24]} bits a channel; convert the images to 8-bit grey (L) or RGB")
    try:
        image: Any = Image.open(io.BytesIO(content), formats=["PNG"])
        if getattr(image, "n_frames", 1) > 1:
            raise UserError(f"{path}: has {image.n_frames} frames; keep one image a file")
        image.load()
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged PNG (does not decode); create it again") from error
    return image


def require_png(content: bytes, path: Path) -> None:
    """Raise a UserError unless content is a PNG with its end; bytes after the end do no harm."""
    if not content.startswith(PNG_START):
        what = stranger(content) or "does not begin as a PNG"
        raise UserError(f"{path}: damaged PNG ({what}); create it again")
    position, kind = len(PNG_START), b""
    while kind != b"IEND" and position + 12 <= len(content):
        kind, length = content[position + 4 : position + 8], int.from_bytes(content[position : position + 4])
        position += 12 + length
    if kind != b"IEND" or position > len(content):
        raise UserError(f"{path}: damaged PNG (truncated); create it again")


def read_image(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        UserError: it cannot be read, such as a link to nowhere.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"links to {path.readlink()}, which is missing" if path.is_symlink() and not path.exists() else ""
        raise UserError(
            f"{path}: cannot be read ({what or error.strerror}); remove it or put the image there"
        ) from error


def labels_json(names: Iterable[str], labels: Tensor | None) -> bytes:
    """Return the content of a dataset.json."""
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels.tolist(), strict=True)]
    return json.dumps({"labels": pairs}).encode()


def read_labels(directory: Path, names: list[str], num_classes: int | None = None) -> Tensor | None:
    """Return the labels (n,) of the named images from the directory's dataset.json, or None if it has no labels."""
    path = directory / LABELS
    if not path.exists():
        return None
    return parse_labels(read_text(path, "labels"), str(path), names, "remove the file", num_classes)


def parse_labels(
    content: str, where: str, names: Sequence[str], remedy: str, num_classes: int | None = None
) -> Tensor | None:
    """Return the labels (n,) of the named images from the text of a dataset.json, or None if it has no labels.

    Raises:
        UserError: a named image has no label or two, or a label is no integer from 0 to num_classes - 1.
    """
    pairs = parse_object(content, where).get("labels")
    if pairs is None:
        return None
    by_name: dict[str, int] = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or type(pair[1]) is not int:
            raise UserError(
                f"{where}: labels must be a list of [name, integer], not {str(pair)[:40]}; correct it, or {remedy}"
            )
        if by_name.setdefault(pair[0], pair[1]) != pair[1]:
            raise UserError(f"{where}: {pair[0]} has the labels {by_name[pair[0]]} and {pair[1]}; keep one")
    for name in names:
        if name not in by_name:
            raise UserError(f"{where}: no label for {name}; add it, or {remedy}")
    labels = [by_name[name] for name in names]
    require_classes(labels, names, num_classes, where)
    return torch.tensor(labels, dtype=torch.int64)


def require_classes(labels: Sequence[int], names: Sequence[str], num_classes: int | None, where: str) -> None:
    """Raise a UserError that names the file, the image and the label unless all are from 0 to num_classes - 1."""
    for name, label in zip(names, labels, strict=True):
        if not 0 <= label < (num_classes or MAX_CLASSES):
            known = f"0 to {num_classes - 1}" if num_classes else "0, 1, ..."
            raise UserError(f"{where}: the label of {name} is {label}; expected {known}")
