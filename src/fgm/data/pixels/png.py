"""PNGs, whole or refused; as tensors of bytes, grey (1, h, w) or RGB (3, h, w), nothing is converted on the way."""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_text

if TYPE_CHECKING:  # GenEval's layouts are read and refused without waiting for torch
    from torch import Tensor

MODES = {
    "L": "grey",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "LA": "grey with alpha",
    "P": "palette",
    "I;16": "16-bit grey",
    "1": "1-bit",
}
END = b"IEND\xaeB`\x82"
LABELS = "dataset.json"  # {"labels": [[name, label], ...]}, as StyleGAN's and EDM's tools have it


def encode(image: "Tensor") -> bytes:
    """The PNG of one image, uint8 (1 or 3, h, w)."""
    pixels = image.cpu().numpy()
    return png_of(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """Of (h, w) or (h, w, 3)."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def opened(content: bytes) -> Image.Image:
    """A PNG with its end, within refusing_damage; its pixels are decoded when they are asked for."""
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    if not content.endswith(END):
        raise EOFError
    return image


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """
    Raises:
        UserError: what is read within is not there, truncated, no PNG, or larger than any image.
    """
    try:
        yield
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "truncated" if isinstance(error, EOFError) else getattr(error, "strerror", None) or "does not decode"
        raise UserError(f"{path}: is no whole PNG ({reason}); make it again") from error


def decode(content: bytes, path: Path) -> "Tensor":
    """The image of a grey or RGB PNG, uint8 (1 or 3, h, w).

    Raises:
        UserError: damaged, or of another mode.
    """
    import torch

    with refusing_damage(path):
        image = opened(content)
        pixels = np.array(image)
    if image.mode not in ("L", "RGB"):
        mode = MODES.get(image.mode, image.mode)
        raise UserError(
            f"{path}: is {mode}, and only 8-bit grey and RGB are measured; convert the folder to one of them"
        )
    return torch.from_numpy(np.atleast_3d(pixels)).movedim(-1, 0).contiguous()


def labels_json(names: Iterable[str], labels: "Tensor | None") -> bytes:
    told = None if labels is None else [list(pair) for pair in zip(names, labels.tolist(), strict=True)]
    return json.dumps({"labels": told}).encode()


def read_labels(directory: Path, names: list[str]) -> "Tensor | None":
    """The labels of the named images, if the directory tells any.

    Raises:
        UserError: it tells some, but not of all of these.
    """
    path = directory / LABELS
    return labels_told(read_text(path, "labels"), str(path), names, "remove the file") if path.exists() else None


def labels_told(content: str, where: str, names: list[str], or_else: str) -> "Tensor | None":
    """The labels of the named images in a dataset.json, if it tells any.

    Raises:
        UserError: it tells some, but not of all of these.
    """
    told = parse_object(content, where).get("labels")
    if told is None:
        return None
    import torch

    try:
        by_name = {str(name): label for name, label in told}
        if any(type(label) is not int for label in by_name.values()):
            raise TypeError("a label is no whole number")
        return torch.tensor([by_name[name] for name in names], dtype=torch.int64)
    except KeyError as error:
        raise UserError(f"{where}: tells no label of {error.args[0]}; add it, or {or_else}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: labels must be a list of [name, whole number]; mend it, or {or_else}") from error
