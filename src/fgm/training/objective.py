"""The generator's objective, w(t) (lambda_1 L_1 + L_2) with its normaliser, and how its gradient is formed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fgm.flow import losses
from fgm.flow.paths import ProbabilityPath
from fgm.training.two_stage import Branch, Outcome, plain, two_stage

Weighting = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective:
    """
    Args:
        path: of x_t.
        lambda_1, detach: see losses.fgm.
        weighting, normaliser: see losses.py.
        loss: of (u, v, c, lambda_1, detach), (batch,): losses.fgm or what stands in its place.
        two_stage: hold one network's graph at a time, see two_stage.py.
    """

    path: ProbabilityPath
    lambda_1: float
    detach: bool
    weighting: Weighting
    normaliser: Weighting
    loss: Callable[..., Tensor] = losses.fgm
    two_stage: bool = False

    def __call__(self, x_0: Tensor, x_t: Tensor, c: Tensor, teacher: Branch, online: Branch) -> Outcome:
        """The batch's mean at x_t, c, which carry the graph of x_0; all (batch, *dims)."""

        def loss(u: Tensor, v: Tensor, c: Tensor) -> Tensor:
            return (self.weight(x_0, x_t, teacher.t, u, v) * self.loss(u, v, c, self.lambda_1, self.detach)).mean()

        return (two_stage if self.two_stage else plain)(x_t, c, teacher, online, loss)

    @torch.no_grad()
    def weight(self, x_0: Tensor, x_t: Tensor, t: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """w(t) times the normaliser, (batch,)."""
        teacher_x_0, online_x_0 = (self.path.x_0_from_velocity(x_t, velocity, t) for velocity in (u, v))
        return self.normaliser(x_0, teacher_x_0, online_x_0) * self.weighting(self.path, t)
