"""Classifier-free guidance as a wrapper: v = v_null + scale (v_condition - v_null) (arXiv 2207.12598)."""

from typing import Annotated

import torch
from torch import Tensor

from fgm.networks import Velocity


class Guided(Velocity):
    """A velocity from a conditional one and its null class; one call of net, on a doubled batch.

    Args:
        net: a velocity network with a null condition.
        scale: 1 gives net back, larger favours the condition over diversity.
    """

    def __init__(self, net: Velocity, scale: Annotated[float, "[0, inf)"]) -> None:
        super().__init__()
        net.null(torch.zeros(1, dtype=torch.int64))  # raises where there is no null condition
        self.net, self.scale, self.shape, self.num_classes = net, scale, net.shape, net.num_classes

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            return self.net(x_t, t)
        both = self.net(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([condition, self.net.null(condition)]))
        v, v_null = both.chunk(2)
        return torch.lerp(v_null, v, self.scale)


def guided(net: Velocity, scale: float) -> Velocity:
    """net itself where the scale is 1, and half the calls with it."""
    return net if scale == 1 else Guided(net, scale)
