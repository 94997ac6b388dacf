"""Training sets. Each draws batches from an explicit generator, so that a batch is a pure function of its key."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor

from fgm.utils.random import keyed_generator


class Data(Protocol):
    """A distribution to learn.

    Attributes:
        shape: of one x_0.
        num_classes: 0 where there are none.
        std: standard deviation of x_0 over samples and dims.
    """

    shape: tuple[int, ...]
    num_classes: int
    std: float

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """n independent training examples: x_0 (n, *shape) float32 and labels (n,) int64 or None.

        The generator may live on any device; they lie there or on the host.
        """
        ...

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """n conditions to generate under, as a data-free distillation draws them: (n, ...) int64 or None.

        On the generator's device.
        """
        ...

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Up to n examples that stand for the truth in pictures, (n, *shape)."""
        ...


@runtime_checkable
class Prompted(Protocol):
    """Data whose conditions are prompts."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The conditions of prompts, (n, ...) int64."""
        ...

    def decode(self, conditions: Tensor) -> list[str]: ...


def prompted(data: Any) -> Prompted | None:
    """data, or what a pool was drawn from, where it has prompts."""
    inner = getattr(data, "data", data)
    return inner if isinstance(inner, Prompted) else None


def measured_std(reference: Callable[[int, Generator], Tensor], n: int) -> float:
    """Of n examples that a set's reference gives, the same ones at every call."""
    return reference(n, keyed_generator("data std", index=0)).std().item()
