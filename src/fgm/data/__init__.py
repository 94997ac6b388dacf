"""Training sets. Each draws batches from an explicit generator, so that a batch is a pure function of its key."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

from torch import Generator, Tensor

from fgm.utils.random import keyed_generator

Split = tuple[Tensor, Tensor | None]  # examples and their labels


class PromptCodec(Protocol):
    """Translates prompts to conditions (n, ...) int64 and back."""

    def encode(self, prompts: Sequence[str]) -> Tensor: ...

    def decode(self, conditions: Tensor) -> list[str]: ...


class Data(ABC):
    """A distribution to learn.

    Attributes:
        shape: shape of one x_0.
        num_classes: number of classes; 0 if conditions are no classes.
        std: standard deviation of x_0 over samples and dimensions.
        std_examples: number of reference examples that std is measured on.
        split: the fixed parts of a finite set, keyed train and, if there is one, test; None for an unlimited set.
        prompts: the translation between prompts and conditions, of a text-conditional set.
    """

    shape: tuple[int, ...]
    num_classes: int = 0
    std_examples = 2000

    @abstractmethod
    def draw(self, n: int, generator: Generator) -> Split:
        """Return n independent training examples: x_0 (n, *shape) float32 and labels (n, ...) int64 or None.

        They are on the generator's device or on the CPU.
        """

    @abstractmethod
    def reference(self, n: int, generator: Generator) -> Tensor:
        """Return up to n real examples for pictures, (n, *shape)."""

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """Return n conditions for data-free distillation, (n, ...) int64 on the generator's device, or None."""
        return None

    def to_images(self, x_0: Tensor) -> Tensor:
        """Return images (n, c, h, w) in [-1, 1] of x_0; only latents differ from their images."""
        return x_0

    @property
    def split(self) -> Mapping[str, Split] | None:
        return None

    @property
    def prompts(self) -> PromptCodec | None:
        return None

    @cached_property
    def std(self) -> float:
        return self.reference(self.std_examples, keyed_generator("data std", index=0)).std().item()
