"""The gradient of a loss through two networks, one network's graph in memory at a time, and exact.

L(x_t, c) = l(u(x_t), v(x_t), c) has the gradients

    dL/dx_t = (du/dx_t)^T dl/du + (dv/dx_t)^T dl/dv        dL/dc = dl/dc

so that the values of u and v are enough to form dl/du, dl/dv and dl/dc, and each network's graph may come and go alone:

    1    v without a graph, u with one; dl/du, dl/dv, dl/dc from l on its leaves
    2    (du/dx_t)^T dl/du, under what u's weights are read by; u's graph goes
    3    v again, with its graph; (dv/dx_t)^T dl/dv likewise
    4    root = <x_t, dL/dx_t> + <c, dL/dc>, both gradients fixed: its backward goes on into x_t and c

One more call of v pays for it. Memory falls from the graphs of generator, u and v to the generator's and the larger of
the two. Where the three share weights (networks/lora.py), it is also what makes gradient checkpointing exact: a block
is recomputed in step 2 or 3 under the very adapter that it was computed under.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fgm.networks import VelocityModel

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # l(u, v, c) -> ()


class Outcome(NamedTuple):
    """Of a loss through u and v.

    Attributes:
        u, v: the velocities, (batch, *dims).
        loss: its value, ().
        root: a scalar whose backward has the loss's gradient; the loss itself, or step 4's.
    """

    u: Tensor
    v: Tensor
    loss: Tensor
    root: Tensor


@dataclass(frozen=True)
class Branch:
    """A velocity at fixed t and condition, in x_t's dtype, as a function of x_t."""

    net: VelocityModel
    t: Tensor
    condition: Tensor | None

    def __call__(self, x_t: Tensor) -> Tensor:
        return self.net(x_t, self.t, self.condition).to(x_t.dtype)

    def pulled_back(self, velocity: Tensor, x_t: Tensor, cotangent: Tensor) -> Tensor:
        """(dv/dx_t)^T cotangent for velocity = self(x_t), whose graph goes."""
        with self.net.adapter_active():
            return torch.autograd.grad(velocity, x_t, cotangent)[0]


def plain(x_t: Tensor, c: Tensor, teacher: Branch, online: Branch, loss: Loss) -> Outcome:
    """All graphs at once, for autograd to walk."""
    u, v = teacher(x_t), online(x_t)
    value = loss(u, v, c)
    return Outcome(u, v, value, value)


def two_stage(x_t: Tensor, c: Tensor, teacher: Branch, online: Branch, loss: Loss) -> Outcome:
    """Steps 1 to 4; no weight of either network receives a gradient."""
    leaf = x_t.detach().requires_grad_()
    with torch.no_grad():
        v = online(leaf)
    u = teacher(leaf)
    value, (d_u, d_v, d_c) = value_and_gradients(loss, u, v, c)
    d_x_t = torch.zeros_like(x_t) if d_u is None else teacher.pulled_back(u, leaf, d_u)
    u = u.detach()
    if d_v is not None:
        d_x_t = d_x_t + online.pulled_back(online(leaf), leaf, d_v)
    root = (x_t * d_x_t).sum()
    return Outcome(u, v, value, root if d_c is None else root + (c * d_c).sum())


def value_and_gradients(loss: Loss, *values: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """l and its gradient with respect to each value; None where it does not depend on one."""
    leaves = [value.detach().requires_grad_() for value in values]
    with torch.enable_grad():
        value = loss(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves, allow_unused=True)
