"""Fashion-MNIST (Xiao et al., arXiv 1708.07747): 60,000 grey images of clothes to train on, 10,000 held out.

IDX, the files' format: two zero bytes, 8 for bytes, the number of axes, each axis as a big-endian int32, the bytes.
Images stay 28 x 28: a border of made-up zeros would be learnt, measured and paid for, and 28 = 4 x 7 suits patches of
2 and 4 as well as two halvings of a U-Net.
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from fgm.data.held import HeldImages, require_labels
from fgm.utils.archives import FASHION, locate
from fgm.utils.errors import UserError

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class Fashion(HeldImages):
    """Grey images (1, 28, 28) in [-1, 1], ten classes.

    Args:
        directory: holds the four IDX files, gzipped or raw; Debian's place or the cache if None.
        download: fetch them into the cache if they are nowhere.
        classes, flips: see HeldImages; shoes all look to the left, so that flips change the distribution.

    Raises:
        UserError: files are missing, damaged, or of another kind.
    """

    shape = (1, 28, 28)

    def __init__(
        self, directory: str | None = None, download: bool = False, classes: bool = True, flips: bool = False
    ) -> None:
        super().__init__(len(CLASSES), classes, flips)
        self.files = locate(FASHION, directory, download)

    def read(self, part: str) -> tuple[Tensor, Tensor]:
        name = {"train": "train", "test": "t10k"}[part]
        images_file, labels_file = (self.files[f"{name}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1"))
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if images.shape[1:] != self.shape[1:]:
            raise UserError(f"{images_file}: holds images of {tuple(images.shape[1:])}, not of {self.shape[1:]}")
        return images[:, None], require_labels(labels, len(images), self.num_classes or len(CLASSES), labels_file)


def read_idx(path: Path, axes: int) -> Tensor:
    """The bytes of an IDX file, uint8 of so many axes.

    Raises:
        UserError: it is truncated, or no IDX file of bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: is no whole gzip file ({error}); fetch it again") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, 8, axes)):
        raise UserError(f"{path}: is no IDX file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) != header + prod(shape):
        raise UserError(f"{path}: is cut short: {len(content) - header} bytes, and its header promises {prod(shape)}")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)
