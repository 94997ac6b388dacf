"""VelocityModel networks and their wrappers, all of one interface."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


class VelocityModel(nn.Module):
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

    def unconditional(self, condition: Tensor) -> Tensor:
        """The condition that says nothing, in condition's shape.

        Raises:
            ValueError: the network has no conditions, and thus no guidance.
        """
        if not self.num_classes:
            raise ValueError("guidance needs a network with classes, and this one has num_classes = 0")
        return torch.full_like(condition, self.num_classes)

    def adapter_active(self) -> AbstractContextManager[None]:
        """Holds while a gradient through a call is computed, where blocks of it may be computed again.

        Nothing, unless the network shares its weights (lora.py).
        """
        return nullcontext()


def require_shape(net: VelocityModel, x_t: Tensor) -> None:
    """
    Raises:
        ValueError: x_t is no batch of what net reads.
    """
    if x_t.shape[1:] != net.shape:
        raise ValueError(f"{type(net).__name__} of shape {net.shape} was given {tuple(x_t.shape[1:])}")


def class_labels(net: VelocityModel, x_t: Tensor, condition: Tensor | None) -> Tensor | None:
    """The condition, or the null label for each of x_t where it is None; None for a network without classes.

    Raises:
        ValueError: labels for a network without classes.
    """
    if condition is not None and not net.num_classes:
        raise ValueError("this network has no classes, and was given labels")
    if condition is None and net.num_classes:
        return torch.full((len(x_t),), net.num_classes, device=x_t.device)
    return condition


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias set to zero, so that what it adds begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def require_patches(name: str, size: int, patch: int, width: int, heads: int) -> None:
    """
    Raises:
        ValueError: a transformer cannot cut its images into such patches, or its tokens into such heads.
    """
    if size % patch or width % heads:
        raise ValueError(f"{name}: patch {patch} must divide size {size}, and heads {heads} must divide width {width}")
