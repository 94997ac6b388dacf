"""Fixed-step solvers of the probability-flow ODE dx/dt = v(x, t), from noise (t = 1) to data (t = 0), and a sampler.

    Euler   x + h v(x, t)                                                        order 1, 1 evaluation a step
    Heun    x + h/2 (v(x, t) + v(x + h v(x, t), t + h)),   h = t_next - t < 0    order 2, 2 evaluations a step

Shapes: x is (batch, *dims); times is (steps + 1,), decreasing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fgm.flow.paths import ProbabilityPath

Field = Callable[[Tensor, Tensor], Tensor]


class Solver(Protocol):
    """One step of an ODE solver; nfe counts velocity evaluations per step."""

    nfe: ClassVar[int]

    def __call__(self, field: Field, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Euler:
    nfe: ClassVar[int] = 1

    def __call__(self, field: Field, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return x + (t_next - t) * field(x, t)


@dataclass(frozen=True)
class Heun:
    nfe: ClassVar[int] = 2

    def __call__(self, field: Field, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        v = field(x, t)
        return x + (t_next - t) / 2 * (v + field(x + (t_next - t) * v, t_next))


EULER = Euler()


def even_times(steps: int, t_min: float, like: Tensor) -> Tensor:
    """Return times from 1 down to t_min, (steps + 1,), with the device and dtype of `like`."""
    return torch.linspace(1, t_min, steps + 1, dtype=like.dtype, device=like.device)


def trajectory(field: Field, x: Tensor, times: Tensor, solver: Solver = EULER) -> Tensor:
    """Return every state from x at times[0] on, (steps + 1, batch, *dims)."""
    states = [x]
    for t, t_next in pairwise(times):
        states.append(solver(field, states[-1], t, t_next))
    return torch.stack(states)


def integrate(field: Field, x: Tensor, times: Tensor, solver: Solver = EULER) -> Tensor:
    """Return the state at times[-1], starting from x at times[0]."""
    for t, t_next in pairwise(times):
        x = solver(field, x, t, t_next)
    return x


class OdeSampler(nn.Module):
    """A velocity network as a many-step generator: (z, condition) -> x_0, all (batch, *dims), in even steps of t.

    Attributes:
        nfe: network evaluations per sample.
    """

    def __init__(self, net: nn.Module, path: ProbabilityPath, steps: int, solver: Solver = EULER) -> None:
        super().__init__()
        self.net, self.path, self.steps, self.solver = net, path, steps, solver
        self.nfe = steps * solver.nfe

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return integrate(self.field(condition), self.path.prior(z), self.times(z), self.solver)

    def trajectory(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return all states, (steps + 1, batch, *dims)."""
        return trajectory(self.field(condition), self.path.prior(z), self.times(z), self.solver)

    def times(self, like: Tensor) -> Tensor:
        return even_times(self.steps, self.path.t_min, like)

    def field(self, condition: Tensor | None) -> Field:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, t.expand(len(x)), condition)

        return velocity
