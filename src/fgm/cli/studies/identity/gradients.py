"""The gradients of the identity by a generator's weights, on given draws, and how well an online network is fitted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgm.flow import losses
from fgm.flow.paths import ProbabilityPath

VelocityOf = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x_t, t and the condition


class Draws(NamedTuple):
    """A part of the draws: z and eps (n, *dims), condition (n, ...) or None, t (n,)."""

    z: Tensor
    condition: Tensor | None
    eps: Tensor
    t: Tensor


@dataclass(frozen=True)
class Problem:
    """A generator that is held, z and condition -> x_0, its teacher, and w(t)."""

    generator: nn.Module
    teacher: VelocityOf
    path: ProbabilityPath
    weighting: Callable[[ProbabilityPath, Tensor], Tensor]

    def at(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """x_t and c, which carry the generator's graph, and w (n,)."""
        x_t, c = self.path.interpolate(self.generator(draws.z, draws.condition), draws.eps, draws.t)
        return x_t, c, self.weighting(self.path, draws.t)

    def gradient(self, value: Tensor, retain: bool = False) -> Tensor:
        """By all of the generator's weights, (p,)."""
        weights = list(self.generator.parameters())
        found = torch.autograd.grad(value, weights, retain_graph=retain, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found]).detach()


def fgm_gradients(problem: Problem, v: VelocityOf, draws: Draws) -> Tensor:
    """grad E w L_1 and grad E w L_2, (2, p); v's weights require no gradient."""
    x_t, c, w = problem.at(draws)
    u, v_at = (net(x_t, draws.t, draws.condition) for net in (problem.teacher, v))
    l_1, l_2 = losses.fgm_terms(u, v_at, c)
    return torch.stack([problem.gradient((w * l_1).mean(), retain=True), problem.gradient((w * l_2).mean())])


def true_gradient(problem: Problem, law: VelocityOf, draws: Draws) -> Tensor:
    """grad J, (p,), by differentiating v_theta itself: law carries the generator's graph."""
    x_t, _, w = problem.at(draws)
    u, v_theta = (net(x_t, draws.t, draws.condition) for net in (problem.teacher, law))
    return problem.gradient((w * losses.squared_norm(u - v_theta)).mean())


@torch.no_grad()
def fit(problem: Problem, v: VelocityOf, reference: VelocityOf, parts: Iterable[Draws]) -> tuple[float, float]:
    """The fit error (5), and the share s of the way from u to the reference, E w <v - u, v_r - u> / E w |v_r - u|^2."""
    sums = torch.zeros(3, dtype=torch.float64)
    for draws in parts:
        x_t, _, w = problem.at(draws)
        u, v_at, r = (net(x_t, draws.t, draws.condition) for net in (problem.teacher, v, reference))
        found = (losses.squared_norm(v_at - r), losses.inner(v_at - u, r - u), losses.squared_norm(u - r))
        sums += torch.stack([(w * f).mean() for f in found]).cpu()
    error, along, whole = sums.tolist()
    return error / whole, along / whole
