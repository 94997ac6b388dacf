"""The gap between FGM's gradient and the exact one while the online network is not yet fitted.

J(theta) = E w |u - v_theta|^2 is the loss that should become small. At a fixed generator let v = v_theta + e be the
online network, e any function of x_t and t, delta = u - v_theta, with the weights inside u, v, e and delta fixed:
grad E w f(x_t) moves only x_t. dv is the derivative of v_theta by theta at fixed x_t. From

    L_1 + L_2 = |u - c|^2 - |v - c|^2    and    grad E w <f, v_theta - c> = -E w <f, dv>

(the flow product identity, differentiated) follows

    grad E w (L_1 + L_2)             =  grad J + 2 E w <e, dv> - grad E w |e|^2                                   (1)
    grad E w (lambda_1 L_1 + L_2)    =  (1) + (lambda_1 - 1) grad E w |delta - e|^2                               (2)

L_1 + L_2 errs to first order in e; every other mixture also misses (lambda_1 - 1) grad E w |delta|^2, even at e = 0.
The second order in e is (lambda_1 - 2) grad E w |e|^2: for an e that is pure training noise, whose first order averages
out, L_2 alone errs twice as much as L_1 + L_2.

But an online network that starts as the teacher lags, and then e points to delta. With A = grad E w |delta|^2 and
B = -2 E w <delta, dv>, grad J = A + B. If v has covered a share s of the straight line, v = u - s delta and
e = (1 - s) delta, then by (1) and (2)

    grad E w (lambda_1 L_1 + L_2)  =  s (B + (2 - (2 - lambda_1) s) A)                                            (3)

which has the direction of grad J for

    lambda_1 = 2 - 1 / s,     SiD's alpha = 1 / (2 s)                                                             (4)

that is 1 for a fitted network, 0 (FGM on CIFAR-10) half way, -0.4 (SiD's best, alpha = 1.2) at s = 5/12. The weight of
A is off by 1 - s in L_1 + L_2 and by |1 - 2 s| in L_2: L_1 harms until s = 2/3. In the fit error

    E w |v - v_theta|^2 / E w |u - v_theta|^2  =  (1 - s)^2                                                       (5)

that is above 1/9. Derived here; tests/experiments/test_identity.py proves (1), (3), (4) and (5) to rounding.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fgm.flow import losses
from fgm.flow.analytic import affine_velocity
from fgm.flow.paths import ProbabilityPath

Velocity = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x_t, t, condition -> velocity
LARGEST_COSINE = 1.02  # an estimate that noise has moved further above 1 is useless


class AffineGenerator(nn.Module):
    """x_0 = W z + b ~ N(b, W W^T), so that v_theta is known in closed form; condition is ignored."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        del condition
        return z @ self.weight.T + self.bias

    def velocity(self, path: ProbabilityPath, differentiable: bool) -> Velocity:
        """Return v_theta, with or without the graph of W and b."""

        def velocity(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            del condition
            weight, bias = (p if differentiable else p.detach() for p in (self.weight, self.bias))
            return affine_velocity(x_t, t, path, weight, bias)

        return velocity


class Draws(NamedTuple):
    """One part of the Monte Carlo draws: z and eps (n, *dims), condition (n, ...) or None, t (n,)."""

    z: Tensor
    condition: Tensor | None
    eps: Tensor
    t: Tensor


@dataclass(frozen=True)
class Problem:
    """A fixed generator, z and condition -> x_0, its teacher, and w(t)."""

    generator: nn.Module
    teacher: Velocity
    path: ProbabilityPath
    weighting: Callable[[ProbabilityPath, Tensor], Tensor]

    def noisy(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Return x_t and c, which carry the generator's graph, and w (n,)."""
        x_t, c = self.path.interpolate(self.generator(draws.z, draws.condition), draws.eps, draws.t)
        return x_t, c, self.weighting(self.path, draws.t)

    def gradient(self, value: Tensor, retain: bool = False) -> Tensor:
        """Return the gradient by all of the generator's weights, (p,)."""
        weights = list(self.generator.parameters())
        parts = torch.autograd.grad(value, weights, retain_graph=retain, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in parts]).detach()


def fgm_gradients(problem: Problem, v: Velocity, draws: Draws) -> Tensor:
    """Return grad E w L_1 and grad E w L_2, (2, p); v's weights require no gradient."""
    x_t, c, w = problem.noisy(draws)
    u, v_at = (net(x_t, draws.t, draws.condition) for net in (problem.teacher, v))
    l_1, l_2 = losses.fgm_terms(u, v_at, c)
    return torch.stack([problem.gradient((w * l_1).mean(), retain=True), problem.gradient((w * l_2).mean())])


def exact_gradient(problem: Problem, v_theta: Velocity, draws: Draws) -> Tensor:
    """Return grad J, (p,), by differentiating v_theta itself, which carries the generator's graph."""
    x_t, _, w = problem.noisy(draws)
    u, v = (net(x_t, draws.t, draws.condition) for net in (problem.teacher, v_theta))
    return problem.gradient((w * losses.squared_norm(u - v)).mean())


@torch.no_grad()
def fit(problem: Problem, v: Velocity, reference: Velocity, parts: Iterable[Draws]) -> tuple[float, float]:
    """Return the fit error (5), and the share s of the way from u to the reference r, E w <v-u, r-u> / E w |r-u|^2."""
    sums = torch.zeros(3, dtype=torch.float64)
    for draws in parts:
        x_t, _, w = problem.noisy(draws)
        u, v_at, r = (net(x_t, draws.t, draws.condition) for net in (problem.teacher, v, reference))
        terms = (losses.squared_norm(v_at - r), losses.inner(v_at - u, r - u), losses.squared_norm(u - r))
        sums += torch.stack([(w * term).mean() for term in terms]).cpu()
    error, along, distance = sums.tolist()
    return error / distance, along / distance


def products(parts: Sequence[Tensor]) -> Tensor:
    """Return unbiased inner products (k, k) of the k mean gradients, from m parts (k, p) of the draws.

    <E g, E h> is estimated by the mean of <g_i, h_j> over i != j, whose expectation it is, since parts are independent.
    """
    total, same = torch.zeros_like(parts[0], dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in parts:
        total += part
        same = same + (part.double() @ part.double().T).cpu()
    return ((total @ total.T).cpu() - same) / (len(parts) * (len(parts) - 1))


def half_cosine(parts: Sequence[Tensor]) -> float:
    """Return the cosine between the mean gradients of the two halves of the draws."""
    halves = [torch.stack([part.double() for part in parts[i::2]]).mean(0) for i in range(2)]
    return float(torch.cosine_similarity(*halves, dim=0))


@dataclass(frozen=True)
class Comparison:
    """products (3, 3) of grad L_1, grad L_2 and the reference gradient; a mixture is its weights of L_1 and L_2."""

    products: Tensor

    def product(self, a: Sequence[float], b: Sequence[float]) -> float:
        left, right = (torch.tensor(vector, dtype=torch.float64) for vector in (a, b))
        return float(left @ self.products @ right)

    def relative(self, a: Sequence[float], b: Sequence[float]) -> float:
        return self.product(a, b) / self.product((0, 0, 1), (0, 0, 1))

    def norm(self, l_1: float, l_2: float) -> float:
        """Return |mixture| / |reference|; nan if it is lost in noise."""
        return root(self.relative((l_1, l_2, 0), (l_1, l_2, 0)))

    def cosine(self, l_1: float, l_2: float) -> float:
        """Return the cosine with the reference; nan if noise moves it out of range."""
        size = self.norm(l_1, l_2)
        cosine = self.relative((l_1, l_2, 0), (0, 0, 1)) / size if size else math.nan
        return cosine if abs(cosine) < LARGEST_COSINE else math.nan

    def gap(self, l_1: float, l_2: float) -> float:
        """Return |mixture - reference| / |reference|; 0 if it is below the noise."""
        return root(max(self.relative((l_1, l_2, -1), (l_1, l_2, -1)), 0.0))

    @property
    def best_lambda_1(self) -> float:
        """Return the lambda_1 whose lambda_1 L_1 + L_2 points nearest to the reference; nan if there is none."""
        l_1, l_2 = torch.linalg.solve(self.products[:2, :2], self.products[:2, 2]).tolist()
        return l_1 / l_2 if l_2 > 0 else math.nan


def root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan
