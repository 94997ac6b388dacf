"""CIFAR-10 (Krizhevsky 2009): 50,000 RGB images of 32 x 32 to train on, 10,000 held out, ten classes.

cifar-10-python.tar.gz holds five training batches and one of tests. Each is a Python 2 pickle of a dict,

    data      uint8 (10000, 3072): red, green and blue planes, row by row
    labels    list of 10,000 whole numbers

that is read by an unpickler which admits arrays and plain containers alone. For PNGs: data=image_folder; for EDM's zip:
data=imagenet64 with its path, size=32 and num_classes; for the hub's parquet files: data=cifar10_parquet.
"""

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgm.data.held import HeldImages, require_labels
from fgm.utils.archives import CIFAR10, locate
from fgm.utils.errors import UserError
from fgm.utils.pickles import CONTAINERS, arrays, read_pickle

FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


class Cifar10(HeldImages):
    """RGB images (3, 32, 32) in [-1, 1].

    Args:
        directory: holds cifar-10-python.tar.gz or the unpacked cifar-10-batches-py; the cache if None.
        download: fetch the archive into the cache if it is nowhere.
        classes, flips: see HeldImages.

    Raises:
        UserError: files are missing, damaged, or of another kind.
    """

    shape = (3, 32, 32)

    def __init__(
        self, directory: str | None = None, download: bool = False, classes: bool = True, flips: bool = True
    ) -> None:
        super().__init__(10, classes, flips)
        self.path = locate(CIFAR10, directory, download)["cifar-10-python.tar.gz"]

    def read(self, part: str) -> tuple[Tensor, Tensor]:
        parts = [read_batch(*found) for found in contents(self.path, BATCHES[part])]
        return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def contents(path: Path, names: list[str]) -> list[tuple[bytes, str]]:
    """Each batch's bytes and what to call it, from the archive or from the folder."""
    try:
        if path.is_dir():
            return [((path / name).read_bytes(), str(path / name)) for name in names]
        with tarfile.open(path) as archive:
            streams = [archive.extractfile(f"{FOLDER}/{name}") for name in names]
            return [(stream.read(), f"{path}: {name}") for stream, name in zip(streams, names, strict=True) if stream]
    except (OSError, EOFError, tarfile.TarError, KeyError) as error:
        told = str(error).strip("'\"").splitlines()[0].rstrip(":")
        raise UserError(f"{path}: is no whole CIFAR-10 ({told}); fetch it again or give data.directory") from error


def read_batch(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 (n, 3, 32, 32), and labels, (n,)."""
    batch: Any = read_pickle(BytesIO(content), name, CONTAINERS | arrays(), encoding="bytes")
    pixels, labels = (batch.get(key) for key in (b"data", b"labels")) if isinstance(batch, dict) else (None, None)
    if pixels is None or getattr(pixels, "dtype", None) != "uint8" or not isinstance(labels, list):
        raise UserError(f"{name}: needs data, uint8 (n, 3072), and labels, a list; fetch it again")
    if pixels.shape[1:] != (3072,):
        raise UserError(f"{name}: its images have {pixels.shape[1:]} numbers, and 32 x 32 RGB has 3072")
    images = torch.from_numpy(pixels.copy()).reshape(-1, *Cifar10.shape)
    return images, require_labels(torch.tensor(labels), len(images), 10, name)
