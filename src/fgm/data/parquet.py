"""CIFAR-10 as the Hugging Face hub keeps it (uoft-cs/cifar10): PNGs in parquet files.

    DIRECTORY[/plain_text]/train-00000-of-00001.parquet, test-00000-of-00001.parquet, of any number of files
    img      struct of bytes (a PNG) and path
    label    int64

pyarrow reads them, an extra of the suite, which needs it nowhere else.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgm.data.held import HeldImages, require_labels, stacked
from fgm.data.pixels.png import decode
from fgm.utils.archives import require_pyarrow
from fgm.utils.errors import UserError, first_line


class Cifar10Parquet(HeldImages):
    """RGB images (3, 32, 32) in [-1, 1].

    Args:
        directory: of the parquet files, or of plain_text.
        classes, flips: see HeldImages.

    Raises:
        UserError: no pyarrow, or files that are missing, damaged, or of another kind.
    """

    shape = (3, 32, 32)

    def __init__(self, directory: str, classes: bool = True, flips: bool = True) -> None:
        super().__init__(10, classes, flips)
        require_pyarrow()
        self.files = {part: find(Path(directory), part) for part in ("train", "test")}

    def read(self, part: str) -> tuple[Tensor, Tensor]:
        parts = [read_file(file) for file in self.files[part]]
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def find(directory: Path, part: str) -> list[Path]:
    """All files of a part, as many as their names promise."""
    place = directory / "plain_text" if (directory / "plain_text").is_dir() else directory
    files = sorted(place.glob(f"{part}-*.parquet"))
    promised = {int(told[1]) for file in files if (told := re.fullmatch(rf"{part}-\d+-of-(\d+)", file.stem))}
    if not files or (promised and promised != {len(files)}):
        wanted = f"{max(promised)} files {part}-*" if promised else f"{part}-00000-of-00001"
        raise UserError(f"{place} needs {wanted}.parquet and has {len(files)}: run hf download uoft-cs/cifar10")
    return files


def read_file(file: Path) -> tuple[Tensor, Tensor]:
    """Images, uint8 (n, 3, 32, 32), and labels, (n,)."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        rows = parquet.read_table(file, columns=["img", "label"]).to_pylist()
        pngs, labels = [row["img"]["bytes"] for row in rows], torch.tensor([row["label"] for row in rows])
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are of these
        told = first_line(error)
        raise UserError(
            f"{file}: is no parquet file of img (bytes, path) and label ({told}); fetch it again"
        ) from error
    images = [decode(png, file / str(i)) for i, png in enumerate(pngs)]
    if not images:
        raise UserError(f"{file}: holds no images; fetch it again")
    found = stacked(images, Cifar10Parquet.shape, lambda i: f"{file}: row {i}")
    return found, require_labels(labels, len(images), 10, file)
