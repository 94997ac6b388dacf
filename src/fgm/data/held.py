"""Labelled images held in memory as bytes: what the sets that come in an archive have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor

from fgm.data.pixels.quantise import dequantise
from fgm.utils.errors import UserError

MEASURED = 10_000  # images from which std is taken
Part = tuple[Tensor, Tensor | None]


class HeldImages(ABC):
    """Draws with replacement from a training split, on the device of the generator that asks.

    A subclass gives shape and read(part).

    Args:
        num_classes: of the archive.
        classes: whether labels are told; without, the set is unconditional.
        flips: whether every second image that is drawn is mirrored left to right.
    """

    shape: tuple[int, ...]

    def __init__(self, num_classes: int, classes: bool, flips: bool) -> None:
        self.num_classes, self.classes, self.flips = num_classes if classes else 0, classes, flips
        self.held: dict[str, Part] = {}

    @abstractmethod
    def read(self, part: str) -> tuple[Tensor, Tensor]:
        """Images, uint8 (n, *shape), and labels, int64 (n,), of train or test."""

    @cached_property
    def split(self) -> dict[str, Part]:
        """Images, uint8, and labels or None, keyed train and test; never flipped."""
        parts = {name: self.read(name) for name in ("train", "test")}
        return {name: (images, labels if self.classes else None) for name, (images, labels) in parts.items()}

    @cached_property
    def std(self) -> float:
        return dequantise(self.split["train"][0][:MEASURED]).std().item()

    def draw(self, n: int, generator: Generator) -> Part:
        images, labels = self.on(generator.device)
        chosen = torch.randint(len(images), (n,), generator=generator, device=generator.device)
        x_0 = dequantise(images[chosen])
        return mirrored(x_0, generator) if self.flips else x_0, None if labels is None else labels[chosen]

    def on(self, device: torch.device) -> Part:
        """The training split where it is asked for."""
        if str(device) not in self.held:
            images, labels = self.split["train"]
            self.held[str(device)] = images.to(device), None if labels is None else labels.to(device)
        return self.held[str(device)]

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        return uniform_labels(self.num_classes, n, generator)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Held-out images; where they have classes, row i is of class i modulo their number."""
        del generator
        images, labels = self.split["test"]
        if labels is None:
            return dequantise(images[:n])
        return dequantise(images[class_by_class(labels, self.num_classes, n)])


def class_by_class(labels: Tensor, num_classes: int, n: int) -> Tensor:
    """Places in labels, (n,), of which the i-th is of class i modulo num_classes; a class without any is left out."""
    places = [(labels == label).nonzero()[:, 0] for label in range(num_classes)]
    rows = [places[i % num_classes] for i in range(n)]
    return torch.stack([row[i // num_classes % len(row)] for i, row in enumerate(rows) if len(row)])


def mirrored(x: Tensor, generator: Generator) -> Tensor:
    """Each image flipped left to right with probability one half."""
    flip = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
    return torch.where(flip[:, None, None, None].to(x.device), x.flip(-1), x)


def with_replacement(count: int, n: int, generator: Generator) -> Tensor:
    """Numbers below count, (n,), on the host."""
    return torch.randint(count, (n,), generator=generator, device=generator.device).cpu()


def uniform_labels(num_classes: int, n: int, generator: Generator) -> Tensor | None:
    """(n,); None where there are no classes."""
    if not num_classes:
        return None
    return torch.randint(num_classes, (n,), generator=generator, device=generator.device)


def stacked(images: list[Tensor], shape: tuple[int, ...], name: Callable[[int], str]) -> Tensor:
    """(n, *shape); name(i) is what to call the i-th one.

    Raises:
        UserError: one is of another size or kind.
    """
    for i, image in enumerate(images):
        if image.shape != shape:
            raise UserError(f"{name(i)} is of shape {tuple(image.shape)}, and should be of {shape}")
    return torch.stack(images)


def require_labels(labels: Tensor, n: int, num_classes: int, path: Path | str) -> Tensor:
    """labels, as int64, where there is one for each of n images and none is out of range.

    Raises:
        UserError: otherwise.
    """
    if labels.shape != (n,):
        raise UserError(f"{path}: holds {labels.numel()} labels, and there are {n} images")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise UserError(f"{path}: label {i} is {int(labels[i])}, and must lie in 0 to {num_classes - 1}")
    return labels.to(torch.int64)
