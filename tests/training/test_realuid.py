"""RealUID's theorem by quadrature (arXiv 2509.22459): its objective for two coefficients, and its fixed point.

A linear generator x_0 = a z + b and Gaussian data give every density and velocity in closed form. Means over (z, eps)
are taken on a uniform grid, on which smooth integrands that vanish at its ends are exact to rounding.
"""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fgm.flow import losses
from fgm.flow.analytic import GaussianMixture, gaussian
from fgm.flow.paths import ProbabilityPath

pytestmark = pytest.mark.usefixtures("float64")

DATA = (0.7, 0.5)  # std and mean, as at
GENERATORS = [(0.6, 0.9), (0.9, 0.2)]
SHARES = [(1.0, 1.0), (0.94, 0.96), (0.85, 0.9), (1.0, 0.96), (0.9, 1.0), (0.5, 0.5)]
TIMES = (0.2, 0.5, 0.8)


@cache
def grid() -> tuple[Tensor, Tensor, Tensor]:
    """z and eps (n, 1) with their weights (n,) under N(0, 1) x N(0, 1)."""
    axis = torch.linspace(-9, 9, 91)
    z, eps = (g.flatten()[:, None] for g in torch.meshgrid(axis, axis, indexing="ij"))
    weight = torch.exp(-(z**2 + eps**2) / 2)[:, 0]
    return z, eps, weight / weight.sum()


def law(at: Tensor) -> GaussianMixture:
    return gaussian(at[1:], at[0])


def data() -> GaussianMixture:
    return law(torch.tensor(DATA))


def noisy(path: ProbabilityPath, at: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, c and weights of x_0 = a z + b."""
    z, eps, weight = grid()
    return *path.interpolate(at[0] * z + at[1], eps, t.expand(len(z))), weight


def optimum(path: ProbabilityPath, at: Tensor, x: Tensor, t: Tensor, a: float, b: float) -> Tensor:
    """v*, from the densities and velocities of both laws."""
    p_theta, p = (m.log_density(x, t, path).exp()[:, None] for m in (law(at), data()))
    v_theta, u = (m.velocity(x, t, path) for m in (law(at), data()))
    return (b * p_theta * v_theta + (1 - b) * p * u) / (a * p_theta + (1 - a) * p)


def objective(path: ProbabilityPath, at: Tensor, t: Tensor, a: float, b: float) -> Tensor:
    """J at one t, with x_t's mean taken over each law in turn."""
    means = []
    for start in (at, torch.tensor(DATA)):
        x, _, weight = noisy(path, start, t)
        means.append(weight @ losses.squared_norm(data().velocity(x, t, path) - optimum(path, at, x, t, a, b)))
    return a * means[0] + (1 - a) * means[1]


def surrogate(path: ProbabilityPath, at: Tensor, t: Tensor, a: float, b: float) -> Tensor:
    """The loss of the generator update: v* with the generator's weights inside it fixed."""
    x, c, weight = noisy(path, at, t)
    return weight @ losses.realuid(data().velocity(x, t, path), optimum(path, at.detach(), x, t, a, b), c, a, b)


def gradients(path: ProbabilityPath, at: tuple[float, float], a: float, b: float) -> tuple[Tensor, Tensor]:
    theta = torch.tensor(at, requires_grad=True)
    sums = [sum(f(path, theta, torch.tensor(t), a, b) for t in TIMES) for f in (surrogate, objective)]
    mean, truth = (torch.autograd.grad(total, theta)[0] for total in sums)
    return mean, truth


@pytest.mark.parametrize("a, b", SHARES)
@pytest.mark.parametrize("at", GENERATORS)
def test_generator_loss_has_the_gradient_of_the_objective(
    path: ProbabilityPath, at: tuple[float, float], a: float, b: float
) -> None:
    """grad E_theta[realuid], online weights fixed at v*, is grad J; for a = b = 1 FGM's theorem."""
    mean, truth = gradients(path, at, a, b)
    assert truth.norm() > 1e-3
    assert_close(mean, truth, rtol=0, atol=1e-7 * float(truth.norm()))


@pytest.mark.parametrize("a, b", SHARES)
def test_gradient_vanishes_at_the_data(path: ProbabilityPath, a: float, b: float) -> None:
    """There v* = u wherever x_t lies, and the gradient vanishes, whatever a and b."""
    x, t = torch.linspace(-2, 3, 50)[:, None], torch.tensor(0.4)
    assert_close(optimum(path, torch.tensor(DATA), x, t, a, b), data().velocity(x, t, path))
    assert gradients(path, DATA, a, b)[0].norm() < 1e-10 * gradients(path, GENERATORS[0], a, b)[0].norm()


@pytest.mark.parametrize("a, b", SHARES)
def test_online_loss_regresses_on_the_optimum(path: ProbabilityPath, a: float, b: float) -> None:
    """Excess loss of any v over v* is its distance in a p_theta + (1 - a) p: generated and real terms together."""
    at, t, excess, distance = torch.tensor(GENERATORS[0]), torch.tensor(0.5), 0.0, 0.0
    for start, (i, j) in ((at, (a, b)), (torch.tensor(DATA), (1 - a, 1 - b))):
        x, c, weight = noisy(path, start, t)
        v, best = torch.sin(x), optimum(path, at, x, t, a, b)
        worse, least = (weight @ losses.realuid_matching(field, c, i, j) for field in (v, best))
        excess, distance = excess + worse - least, distance + i * (weight @ losses.squared_norm(v - best))
    assert distance > 0.1
    assert_close(excess, distance)


@pytest.mark.parametrize("lambda_1", [0.0, 1.0, -0.4])
@pytest.mark.parametrize("detach", [False, True])
def test_a_b_of_one_is_fgm_to_the_bit(lambda_1: float, detach: bool) -> None:
    """Values and gradients of both updates, in float32."""
    u, v, c = (torch.randn(7, 2, 4, 4, dtype=torch.float32).requires_grad_() for _ in range(3))
    pairs = [
        (losses.realuid(u, v, c, 1, 1, lambda_1, detach), losses.fgm(u, v, c, lambda_1, detach)),
        (losses.realuid_matching(v, c, 1, 1), losses.flow_matching(v, c)),
    ]
    for ours, fgm in pairs:
        assert torch.equal(ours, fgm)
        both = [torch.autograd.grad(x.sum(), (u, v, c), retain_graph=True, allow_unused=True) for x in (ours, fgm)]
        assert all((g is None and h is None) or torch.equal(g, h) for g, h in zip(*both, strict=True))


@pytest.mark.parametrize("a, b", SHARES)
def test_loss_is_a_difference_of_squares(a: float, b: float) -> None:
    """With lambda_1 = 1: a |u - (b/a) c|^2 - a |v - (b/a) c|^2, per sample."""
    u, v, c = torch.randn(3, 7, 2, 4, 4)
    difference = losses.realuid_matching(u, c, a, b) - losses.realuid_matching(v, c, a, b)
    assert_close(losses.realuid(u, v, c, a, b), difference)
    assert losses.realuid(u, v, c, a, b).shape == (7,)


def test_zero_share_is_the_limit_of_small_shares() -> None:
    """a -> 0: the square's constant diverges, and differences between two fields do not."""
    v, w, c = torch.randn(3, 7, 6)
    limit, near = (losses.realuid_matching(v, c, a, 0.04) - losses.realuid_matching(w, c, a, 0.04) for a in (0.0, 1e-9))
    assert_close(near, limit, rtol=0, atol=1e-6)
