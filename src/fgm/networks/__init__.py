"""Velocity networks and their wrappers, which share the interface of VelocityModel."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from fgm.flow.paths import ProbabilityPath

Layer = TypeVar("Layer", bound=nn.Module)


class VelocityModel(nn.Module):
    """A velocity field v(x_t, t, condition).

    Attributes:
        shape: of one x_t, without the batch.
        num_classes: 0 for an unconditional network; otherwise labels are 0 ... num_classes - 1, and num_classes is
            the null label. Networks with other conditions, such as prompts, have 0 and override unconditional().
        takes_prompts: whether conditions are prompts.
        path: on which it is a velocity.
        data_std: standard deviation of the data that it was trained on.
        null_condition: whether it was trained with the null condition, which guidance needs.

    The last four are None where they are unknown; training/contract.py refuses a run that they do not fit.
    """

    shape: tuple[int, ...]
    num_classes: int
    takes_prompts: bool | None = None
    path: ProbabilityPath | None = None
    data_std: float | None = None
    null_condition: bool | None = None

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return velocities (batch, *shape) for x_t (batch, *shape), t (batch,), condition (batch, ...) or None."""

    def unconditional(self, condition: Tensor) -> Tensor:
        """Return null conditions in the shape of condition, for classifier-free guidance.

        Raises:
            ValueError: the network has no null condition.
        """
        if not self.num_classes:
            raise ValueError("guidance needs a network with classes, and this one has num_classes = 0")
        return torch.full_like(condition, self.num_classes)

    def adapter_active(self) -> AbstractContextManager[None]:
        """Return the context in which a backward pass through this network must run; only a LoRAModel needs one."""
        return nullcontext()


def require_shape(net: VelocityModel, x_t: Tensor) -> None:
    """Raise ValueError unless x_t is a batch of net.shape."""
    if x_t.shape[1:] != net.shape:
        raise ValueError(f"{type(net).__name__} of shape {net.shape} was given {tuple(x_t.shape[1:])}")


def class_labels(net: VelocityModel, x_t: Tensor, condition: Tensor | None) -> Tensor | None:
    """Return the labels to embed: condition, null labels for None, or None for a network without classes.

    Raises:
        ValueError: labels for a network without classes.
    """
    if condition is not None and not net.num_classes:
        raise ValueError("this network has no classes, and was given labels")
    if condition is None and net.num_classes:
        return torch.full((len(x_t),), net.num_classes, device=x_t.device)
    return condition


def zeroed(layer: Layer) -> Layer:
    """Set weight and bias to zero, in place, so that the layer's branch adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def require_patches(name: str, size: int, patch: int, width: int, heads: int) -> None:
    """Raise ValueError unless a transformer can cut its images into patches and its tokens into heads."""
    if size % patch or width % heads:
        raise ValueError(f"{name}: patch {patch} must divide size {size}, and heads {heads} must divide width {width}")
