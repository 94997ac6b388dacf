"""Velocity networks and their wrappers, all of one interface."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Velocity(nn.Module):
    """velocity(x_t, t, condition) -> (batch, *shape).

    Attributes:
        shape: of one x_t.
        num_classes: 0 for an unconditional network; else labels run from 0, and num_classes is the null label.
    """

    shape: tuple[int, ...]
    num_classes: int

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x_t (batch, *shape), t (batch,), condition (batch, ...) int64 or None."""

    def null(self, condition: Tensor) -> Tensor:
        """The condition that says nothing, in condition's shape.

        Raises:
            ValueError: the network has no conditions, and thus no guidance.
        """
        if not self.num_classes:
            raise ValueError("guidance needs a network with classes, and this one has num_classes = 0")
        return torch.full_like(condition, self.num_classes)

    def active(self) -> AbstractContextManager[None]:
        """Holds while a gradient through a call is computed, where blocks of it may be computed again.

        Nothing, unless the network shares its weights (lora.py).
        """
        return nullcontext()


def require_patches(name: str, size: int, patch: int, width: int, heads: int) -> None:
    """
    Raises:
        ValueError: a transformer cannot cut its images into such patches, or its tokens into such heads.
    """
    if size % patch or width % heads:
        raise ValueError(f"{name}: patch {patch} must divide size {size}, and heads {heads} must divide width {width}")
