"""Fixed-step solvers of the probability-flow ODE dx/dt = v(x, t), from noise (t = 1) to data (t = 0).

    Euler   x + h v(x, t)                                                        order 1, 1 evaluation a step
    Heun    x + h/2 (v(x, t) + v(x + h v(x, t), t + h)),   h = t_next - t < 0    order 2, 2 evaluations a step

Shapes: x is (batch, *dims); times is (steps + 1,), decreasing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Protocol

import torch
from torch import Tensor

from fgm.times import shift_time

Field = Callable[[Tensor, Tensor], Tensor]


class Solver(Protocol):
    """One step of an ODE solver; nfe counts velocity evaluations a step."""

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


@dataclass(frozen=True)
class TimeGrid:
    """steps + 1 times, uniform from t_max down to t_min before the shift (arXiv 2403.03206, eq. 23)."""

    steps: Annotated[int, "[1, inf)"]
    shift: Annotated[float, "(0, inf)"] = 1.0
    t_max: Annotated[float, "(0, 1]"] = 1.0
    t_min: Annotated[float, "[0, 1)"] = 0.0

    def times(self, like: Tensor) -> Tensor:
        """(steps + 1,) on the device and in the dtype of like."""
        uniform = torch.linspace(self.t_max, self.t_min, self.steps + 1, dtype=like.dtype, device=like.device)
        return shift_time(uniform, self.shift).clamp_max(1)


def trajectory(field: Field, x: Tensor, times: Tensor, solver: Solver = EULER) -> Tensor:
    """Every state on the way, (steps + 1, batch, *dims), from x at times[0]."""
    states = [x]
    for t, t_next in pairwise(times):
        states.append(solver(field, states[-1], t, t_next))
    return torch.stack(states)


def integrate(field: Field, x: Tensor, times: Tensor, solver: Solver = EULER) -> Tensor:
    """The state at times[-1], from x at times[0]."""
    for t, t_next in pairwise(times):
        x = solver(field, x, t, t_next)
    return x
