"""The folder layout that GenEval's official evaluator reads:

    <directory>/<index, 5 digits>/metadata.jsonl             the prompt's metadata, one JSON object
    <directory>/<index, 5 digits>/samples/<ordinal, 5 digits>.png

Indices count the prompts from 0 and ordinals the samples of one prompt. Folders of 4 digits and files of any number of
digits are read too. Every file is written atomically: what is there is whole. What is read must be complete, hold the
prompts that were asked for, and decode.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from fgm.data.pixels import damaged_png, encode_array, open_png
from fgm.data.text.geneval.prompts import Metadata, digest
from fgm.evaluation.geneval.completeness import require_complete
from fgm.evaluation.geneval.detections import Pixels
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_text, write_bytes

FOLDER, FILE = re.compile(r"\d{4,5}"), re.compile(r"\d+\.png")


@dataclass(frozen=True, order=True)
class Sample:
    """One image: the ordinal-th one of prompt index."""

    index: int
    ordinal: int
    path: Path

    @property
    def key(self) -> str:
        """Its path relative to the layout's directory."""
        return "/".join(self.path.parts[-3:])

    def pixels(self) -> Pixels:
        return read_png(self.path)


def write_sample(directory: Path, index: int, ordinal: int, metadata: Metadata, pixels: Pixels) -> Path:
    """Export one image and, before it, its prompt.

    Raises:
        UserError: the folder holds another prompt.
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
    """All samples, by index and ordinal.

    Raises:
        UserError: a prompt or a sample is missing, too many or there twice, or a folder holds another prompt.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is missing: it should hold folders such as 00000/samples")
    samples = sorted(
        Sample(int(path.parts[-3]), int(path.stem), path)
        for path in directory.glob("*/samples/*.png")
        if FOLDER.fullmatch(path.parts[-3]) and FILE.fullmatch(path.name)
    )
    require_complete([(sample.index, sample.ordinal) for sample in samples], len(prompts), per_prompt, str(directory))
    for folder, index in {sample.path.parents[1]: sample.index for sample in samples}.items():
        require_prompt(folder, prompts[index])
    return samples


def describe(samples: Sequence[Sample], prompts: Sequence[Metadata]) -> dict[str, Any]:
    """All that defines a whole layout, as plain containers, see provenance.definition."""
    content = sha256()
    for sample in samples:
        content.update(sample.path.read_bytes())
    asked = {"prompts": digest(prompts), "per_prompt": len(samples) // len(prompts)}
    return {"kind": "geneval", "sha256": content.hexdigest(), **asked}


def require_prompt(folder: Path, metadata: Metadata) -> None:
    """Refuse unless the folder's metadata are these, whatever the order of their keys."""
    path = folder / "metadata.jsonl"
    row = parse_object(read_text(path, f"the metadata of {metadata.prompt!r}"), str(path))
    if row != json.loads(metadata.line()):
        raise UserError(f"{path}: is not the metadata of {metadata.prompt!r}; the images were made for other prompts")


def read_png(path: Path) -> Pixels:
    """uint8 (h, w, 3), upright.

    Raises:
        UserError: the file is missing, truncated or no PNG.
    """
    with damaged_png(path):
        return np.asarray(ImageOps.exif_transpose(open_png(path.read_bytes())).convert("RGB"))
