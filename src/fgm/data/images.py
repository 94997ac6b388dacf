"""Labelled images in memory: the base class of finite image sets, digits, and a cache of an unlimited set."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Generator, Tensor

from fgm.data import Data, PromptCodec, Split
from fgm.data.pixels import dequantise, quantise
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

STD_IMAGES = 10_000  # number of training images that std is measured on
CACHE_CHUNK = 10_000  # images that a CachedDataset draws at once
TEST_SHARE = 5  # every fifth digit of a class belongs to the test split


class InMemoryImages(Data):
    """Draws with replacement from a training split that lives on the generator's device.

    Args:
        num_classes: number of classes; 0 for an unconditional set, whatever labels read returns.
        flips: whether each image that is drawn is mirrored left to right with probability 1/2.
    """

    parts: tuple[str, ...] = ("train", "test")

    def __init__(self, num_classes: int = 0, flips: bool = False) -> None:
        self.num_classes, self.flips = num_classes, flips
        self.copies: dict[str, Split] = {}

    @abstractmethod
    def read(self, part: str) -> Split:
        """Return images, uint8 or float in [-1, 1], and labels (n, ...) int64 or None."""

    @cached_property
    def split(self) -> Mapping[str, Split] | None:
        read = {part: self.read(part) for part in self.parts}
        return {part: (images, labels if self.num_classes else None) for part, (images, labels) in read.items()}

    @property
    def training(self) -> Split:
        assert self.split is not None
        return self.split["train"]

    @cached_property
    def std(self) -> float:
        return dequantise(self.training[0][:STD_IMAGES]).std().item()

    def draw(self, n: int, generator: Generator) -> Split:
        device = str(generator.device)
        if device not in self.copies:
            images, labels = self.training
            self.copies[device] = images.to(generator.device), None if labels is None else labels.to(generator.device)
        images, labels = self.copies[device]
        chosen = torch.randint(len(images), (n,), generator=generator, device=generator.device)
        x_0 = dequantise(images[chosen])
        return mirror(x_0, generator) if self.flips else x_0, None if labels is None else labels[chosen]

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        return uniform_labels(self.num_classes, n, generator)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Return test images; if there are classes, image i is of class i modulo their number."""
        del generator
        assert self.split is not None
        images, labels = self.split["test"]
        return dequantise(images[:n] if labels is None else images[class_by_class(labels, self.num_classes, n)])


class Digits(InMemoryImages):
    """scikit-learn's digits: 1,797 handwritten digits, grey (1, 8, 8) in [-1, 1], ten classes.

    The split is fixed and stratified: 1,433 to train on and 364 to test.
    """

    shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__(num_classes=10)

    def read(self, part: str) -> Split:
        from sklearn.datasets import load_digits  # takes a second to import

        pixels, digits = map(np.asarray, load_digits(return_X_y=True))
        images, labels = torch.tensor(pixels / 8 - 1, dtype=torch.float32), torch.tensor(digits)
        test = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(10):
            test[(labels == label).nonzero()[::TEST_SHARE, 0]] = True
        chosen = test if part == "test" else ~test
        return images[chosen].reshape(-1, *self.shape), labels[chosen]


@validated
class CachedDataset(InMemoryImages):
    """n examples of an unlimited set of images, rendered once: worth it if a GPU is faster than the renderer.

    Args:
        data: images in [-1, 1] with conditions.
        n: number of examples.
        seed: seed of the examples.
    """

    split = None

    def __init__(self, data: Data, n: PositiveInt = 200_000, seed: int = 0) -> None:
        super().__init__(data.num_classes)
        self.data, self.n, self.seed, self.shape = data, n, seed, data.shape

    def read(self, part: str) -> Split:
        sizes = [min(CACHE_CHUNK, self.n - start) for start in range(0, self.n, CACHE_CHUNK)]
        chunks = [self.data.draw(size, keyed_generator(self.seed, "pool", index=i)) for i, size in enumerate(sizes)]
        images, conditions = torch.cat([quantise(x) for x, _ in chunks]), [c for _, c in chunks if c is not None]
        return images, torch.cat(conditions) if conditions else None

    @cached_property
    def training(self) -> Split:
        return self.read("train")

    @property
    def std(self) -> float:
        return self.data.std

    @property
    def prompts(self) -> PromptCodec | None:
        return self.data.prompts

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        return self.draw(n, generator)[1]

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.data.reference(n, generator)


def class_by_class(labels: Tensor, num_classes: int, n: int) -> Tensor:
    """Return n indices into labels, the i-th of class i modulo num_classes; classes without examples are skipped."""
    members = [(labels == label).nonzero()[:, 0] for label in range(num_classes)]
    rows = [members[i % num_classes] for i in range(n)]
    return torch.stack([row[i // num_classes % len(row)] for i, row in enumerate(rows) if len(row)])


def mirror(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    flip = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
    return torch.where(flip[:, None, None, None].to(x.device), x.flip(-1), x)


def random_indices(count: int, n: int, generator: Generator) -> Tensor:
    """Return n indices below count on the CPU, drawn with replacement."""
    return torch.randint(count, (n,), generator=generator, device=generator.device).cpu()


def uniform_labels(num_classes: int, n: int, generator: Generator) -> Tensor | None:
    """Return n labels (n,), or None if there are no classes."""
    if not num_classes:
        return None
    return torch.randint(num_classes, (n,), generator=generator, device=generator.device)


def stack_images(images: list[Tensor], shape: tuple[int, ...], name: Callable[[int], str]) -> Tensor:
    """Return images as (n, *shape).

    Raises:
        UserError: image i is of another shape; the message calls it name(i).
    """
    for i, image in enumerate(images):
        if image.shape != shape:
            raise UserError(f"{name(i)} has shape {tuple(image.shape)}, expected {shape}")
    return torch.stack(images)


def checked_labels(labels: Tensor, n: int, num_classes: int, path: Path | str) -> Tensor:
    """Return the labels of n images as int64.

    Raises:
        UserError: their number is not n, or one is out of range.
    """
    if labels.shape != (n,):
        raise UserError(f"{path}: {labels.numel()} labels for {n} images")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise UserError(f"{path}: label {i} is {int(labels[i])}; expected 0 to {num_classes - 1}")
    return labels.to(torch.int64)
