"""A zip of PNGs in the layout of EDM's dataset_tool: ImageNet-64, or CIFAR-10, FFHQ, AFHQ as it makes them.

    00000/img00000000.png, ...     all of one size and kind
    dataset.json                   {"labels": [[name, label], ...]}, or null

Images are decoded when they are drawn, since ImageNet's 1.28 million make 16 GB of bytes.
"""

import zipfile
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from torch import Generator, Tensor

from fgm.data import measured_std
from fgm.data.held import mirrored, require_labels, stacked, uniform_labels, with_replacement
from fgm.data.pixels.png import LABELS, decode, labels_told
from fgm.data.pixels.quantise import dequantise
from fgm.utils.errors import UserError

MEASURED = 2000  # images from which std is taken
MOST = 50_000  # images that a reference for distances holds


class ZippedImages:
    """Images in [-1, 1], drawn with replacement.

    Args:
        path: of the zip.
        size: side of an image, in pixels.
        num_classes: labels lie below it; 0 for none, whatever the archive tells.
        flips: whether every second image that is drawn is mirrored left to right.

    Raises:
        UserError: no such zip, a damaged one, images of another size, or labels out of range.
    """

    def __init__(
        self,
        path: str,
        size: Annotated[int, "[1, inf)"] = 64,
        num_classes: Annotated[int, "[0, inf)"] = 1000,
        flips: bool = True,
    ) -> None:
        self.path, self.num_classes, self.flips = Path(path), num_classes, flips
        try:
            self.archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is no whole zip ({error}); make it again with EDM's dataset_tool") from error
        self.names = sorted(name for name in self.archive.namelist() if name.lower().endswith(".png"))
        if not self.names:
            raise UserError(f"{path}: holds no PNGs")
        self.shape = (len(self.image(0)), size, size)
        self.labels = self.read_labels() if num_classes else None
        self.take(torch.tensor([0]))

    def image(self, index: int) -> Tensor:
        name = self.names[index]
        try:
            return decode(self.archive.read(name), self.path / name)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{self.path / name}: does not read ({error}); make the zip again") from error

    def read_labels(self) -> Tensor:
        """(n,), one for each image."""
        where, without = f"{self.path}: {LABELS}", "give data.num_classes=0 to do without"
        content = self.archive.read(LABELS).decode() if LABELS in self.archive.namelist() else "{}"
        labels = labels_told(content, where, self.names, without)
        if labels is None:
            raise UserError(f"{where} tells no labels; {without}")
        return require_labels(labels, len(self.names), self.num_classes, where)

    def take(self, indices: Tensor) -> Tensor:
        """Images by their numbers, uint8 (n, *shape).

        Raises:
            UserError: one is of another size or kind.
        """
        images = [self.image(i) for i in indices.tolist()]
        return stacked(images, self.shape, lambda i: f"{self.path}: {self.names[indices[i]]}")

    @cached_property
    def std(self) -> float:
        return measured_std(self.reference, MEASURED)

    @cached_property
    def split(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """What distances are taken from, keyed train: up to MOST images in equal steps; EDM's zips hold none out."""
        chosen = torch.arange(len(self.names))[:: -(-len(self.names) // MOST)]
        return {"train": (self.take(chosen), None if self.labels is None else self.labels[chosen])}

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        chosen = with_replacement(len(self.names), n, generator)
        x_0 = dequantise(self.take(chosen).to(generator.device))
        labels = None if self.labels is None else self.labels[chosen].to(generator.device)
        return mirrored(x_0, generator) if self.flips else x_0, labels

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        return uniform_labels(self.num_classes, n, generator)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Images in an order of chance."""
        order = torch.randperm(len(self.names), generator=generator, device=generator.device).cpu()
        return dequantise(self.take(order[:n]))
