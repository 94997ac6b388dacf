"""A folder of PNGs as a data set: real images for a teacher, for an adversary, or for RealUID's data term."""

from functools import cached_property

import torch
from torch import Generator, Tensor

from fgm.data import measured_std
from fgm.data.held import mirrored, with_replacement
from fgm.data.pixels.folder import PngFolder
from fgm.data.pixels.quantise import dequantise

MEASURED = 2000  # images from which std is taken


class ImageFolder:
    """Images in [-1, 1], held in memory as bytes and drawn with replacement.

    Args:
        directory: holds the PNGs.
        recursive: whether to look into subfolders.
        flips: whether every second image that is drawn is mirrored left to right.

    Raises:
        UserError: see PngFolder.
    """

    def __init__(self, directory: str, recursive: bool = False, flips: bool = False) -> None:
        self.folder, self.flips = PngFolder(directory, recursive=recursive), flips
        self.shape, labels = self.folder.shape, self.folder.labels
        self.num_classes = 0 if labels is None else int(labels.max()) + 1

    @cached_property
    def held(self) -> Tensor:
        """All images, uint8 (n, c, h, w)."""
        return self.folder.read(range(self.folder.n))

    @cached_property
    def std(self) -> float:
        return measured_std(self.reference, MEASURED)

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        chosen, labels = with_replacement(self.folder.n, n, generator), self.folder.labels
        x_0 = dequantise(self.held[chosen])
        return mirrored(x_0, generator) if self.flips else x_0, None if labels is None else labels[chosen]

    @property
    def split(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """What distances are taken from, keyed train: all images, never flipped."""
        return {"train": (self.held, self.folder.labels)}

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """The labels of n images."""
        labels = self.folder.labels
        return None if labels is None else labels[with_replacement(self.folder.n, n, generator)].to(generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Images in an order of chance, none twice while there are others."""
        order = torch.randperm(self.folder.n, generator=generator, device=generator.device).cpu()
        return dequantise(self.held[order[:n]])
