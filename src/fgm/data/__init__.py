"""Training sets. Each draws batches from an explicit generator, so that a batch is a pure function of its key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor

from fgm.utils.random import keyed_generator

Split = tuple[Tensor, Tensor | None]  # examples and their labels


class Data(Protocol):
    """A distribution to learn. Subclasses inherit the defaults of everything below `reference`.

    Attributes:
        shape: shape of one x_0.
        num_classes: number of classes, 0 for an unlabelled set.
        std: standard deviation of x_0 over samples and dimensions.
    """

    shape: tuple[int, ...]
    num_classes: int
    std: float

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Return n independent training examples: x_0 (n, *shape) float32 and labels (n, ...) int64 or None.

        They are on the generator's device or on the CPU.
        """
        ...

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Return up to n real examples for pictures, (n, *shape)."""
        ...

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """Return n conditions for data-free distillation, (n, ...) int64 on the generator's device, or None."""
        return None

    @property
    def split(self) -> Mapping[str, Split] | None:
        """The fixed parts of a finite set, keyed train and, if there is one, test; None for an unlimited set."""
        return None

    @property
    def prompts(self) -> "PromptCodec | None":
        """The translation between prompts and conditions of a text-conditional set."""
        return None

    def to_images(self, x_0: Tensor) -> Tensor:
        """Return images (n, c, h, w) in [-1, 1] of x_0 (n, *shape), which differ only if x_0 are latents."""
        return x_0


@runtime_checkable
class PromptCodec(Protocol):
    """Translates prompts to conditions and back."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the conditions of prompts, (n, ...) int64."""
        ...

    def decode(self, conditions: Tensor) -> list[str]: ...


def prompted(data: Any) -> PromptCodec | None:
    """Return the prompt codec of data, if it has one."""
    return getattr(data, "prompts", None)


def measured_std(reference: Callable[[int, Generator], Tensor], n: int) -> float:
    """Return the standard deviation of n reference examples, the same ones at every call."""
    return reference(n, keyed_generator("data std", index=0)).std().item()
