"""The gradient of a loss through two velocity networks with one network's graph in memory at a time; exact.

L = l(u(x_t), v(x_t), c, x_0, x_t), a mean over the batch, has the gradient

    dL/dx_t = (du/dx_t)^T dl/du + (dv/dx_t)^T dl/dv + dl/dx_t

so the values of u and v are enough to form all derivatives of l, and each network's graph may come and go separately:

    1    v without a graph, u with one; the derivatives of l from its value on leaves
    2    (du/dx_t)^T dl/du; u's graph is freed
    3    v again, with its graph; (dv/dx_t)^T dl/dv likewise
    4    <x_t, dL/dx_t> + <c, dl/dc> + <x_0, dl/dx_0>, whose backward continues into x_t, c and x_0

The price is one more call of v. Peak memory falls from the graphs of both networks to the larger of the two. If the networks
share weights (networks/lora.py), this is also what makes gradient checkpointing exact: a block is recomputed in step 2 or 3
under the adapter that it was computed under.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fgm.data.encodings import CachedText
from fgm.networks import VelocityModel

PerSampleLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # l(u, v, c, x_0, x_t) -> (batch,)


@dataclass(frozen=True)
class VelocityAt:
    """A velocity at fixed t and condition, in x_t's dtype, as a function of x_t."""

    net: VelocityModel
    t: Tensor
    condition: Tensor | None

    def __call__(self, x_t: Tensor) -> Tensor:
        return self.net(x_t, self.t, self.condition).to(x_t.dtype)

    def vjp(self, velocity: Tensor, x_t: Tensor, cotangent: Tensor) -> Tensor:
        """Return (dv/dx_t)^T cotangent for velocity = self(x_t); free its graph."""
        with self.net.adapter_active():
            return torch.autograd.grad(velocity, x_t, cotangent)[0]


def two_stage(
    teacher: VelocityAt, online: VelocityAt, loss: PerSampleLoss, c: Tensor, x_0: Tensor, x_t: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return u, v, the mean loss (), and a surrogate () whose backward into x_0, x_t and c is the loss's.

    No weight of either network receives a gradient.
    """
    at = x_t.detach().requires_grad_()
    with torch.no_grad():
        v = online(at)
    u = teacher(at)
    leaves = [x.detach().requires_grad_() for x in (u, v, c, x_0, x_t)]
    with torch.enable_grad():
        value = loss(*leaves).mean()
    d_u, d_v, d_c, d_x_0, d_x_t = torch.autograd.grad(value, leaves, allow_unused=True)
    pulled_back = torch.zeros_like(x_t) if d_u is None else teacher.vjp(u, at, d_u)
    if d_v is not None:
        pulled_back = pulled_back + online.vjp(online(at), at, d_v)
    surrogate = (x_t * (pulled_back if d_x_t is None else pulled_back + d_x_t)).sum()
    for x, d in ((c, d_c), (x_0, d_x_0)):
        surrogate = surrogate if d is None else surrogate + (x * d).sum()
    return u.detach(), v, value.detach(), surrogate


@contextmanager
def cached_prompts(nets: Sequence[VelocityModel], condition: Tensor | None) -> Iterator[None]:
    """Read the embeddings of these prompts from disk once, for the networks that look them up; None: do not."""
    with ExitStack() as stack:
        if condition is not None:
            for text in {module for net in nets for module in net.modules() if isinstance(module, CachedText)}:
                stack.enter_context(text.preload(condition))
        yield
