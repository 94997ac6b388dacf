"""Exact marginals: density, score and velocity of a mixture are one object, and its ODE leads to the data."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Generator, Tensor
from torch.testing import assert_close

from fgm.flow.analytic import GaussianMixture, gaussian, ring
from fgm.flow.paths import ProbabilityPath
from fgm.flow.solvers import Heun, integrate

pytestmark = pytest.mark.usefixtures("float64")

Mixture = Callable[[], GaussianMixture]


def line() -> GaussianMixture:
    """Two unequal modes on the line."""
    return GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.5]]), torch.tensor([0.4, 0.8]))


def plane() -> GaussianMixture:
    """Three unequal modes in the plane."""
    means = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.0, -2.0]])
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3]), means, torch.tensor([0.4, 0.8, 0.6]))


def one() -> GaussianMixture:
    return gaussian(torch.tensor([0.3, -0.8, 1.1]), torch.tensor(0.7))


def cdf(mixture: GaussianMixture, x: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
    """P(x_t <= x) on the line, in closed form."""
    k = path.coefficients(t)
    std = (k.alpha**2 * mixture.stds**2 + k.sigma**2).sqrt()
    return torch.special.ndtr((x - k.alpha * mixture.means[:, 0]) / std) @ mixture.weights


def data_density(mixture: GaussianMixture, x_0: Tensor) -> Tensor:
    """The data's density on the line, written out."""
    standard = (x_0[:, None] - mixture.means[:, 0]) / mixture.stds
    return torch.exp(-(standard**2) / 2) / (mixture.stds * math.sqrt(2 * math.pi)) @ mixture.weights


@pytest.mark.parametrize("mixture", [line, plane, one])
def test_the_velocity_is_the_one_of_the_score(path: ProbabilityPath, mixture: Mixture) -> None:
    """v(x, t) follows from grad log p_t by the path's conversion, at per-sample times."""
    t = torch.linspace(0.03, 0.97, 40)
    x = path.interpolate(mixture().means[:1], 1.5 * torch.randn(40, mixture().means.shape[1]), t)[0].requires_grad_()
    score = torch.autograd.grad(mixture().log_density(x, t, path).sum(), x)[0]
    assert_close(mixture().velocity(x, t, path), path.velocity_from_score(x, score, t))


@pytest.mark.parametrize("t", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("mixture", [line, plane])
def test_a_density_integrates_to_one(path: ProbabilityPath, mixture: Mixture, t: float) -> None:
    """The integral of p_t is 1 at every t, on the line and in the plane."""
    time = torch.tensor(t)
    axis = (4 + 8 * path.coefficients(time).sigma) * torch.linspace(-1.5, 1.5, 301)
    x = torch.cartesian_prod(*[axis] * mixture().means.shape[1]).reshape(-1, mixture().means.shape[1])
    mass = mixture().log_density(x, time, path).exp().sum() * (axis[1] - axis[0]) ** x.shape[1]
    assert_close(mass, torch.tensor(1.0))


def test_the_density_at_zero_is_the_data(path: ProbabilityPath) -> None:
    """p_0 = sum_k w_k N(m_k, s_k^2 I), whatever the path."""
    mixture, x = plane(), torch.randn(20, 2)
    normals = [torch.distributions.Normal(m, s) for m, s in zip(mixture.means, mixture.stds, strict=True)]
    density = sum(w * n.log_prob(x).sum(1).exp() for w, n in zip(mixture.weights, normals, strict=True))
    assert_close(mixture.log_density(x, torch.tensor(0.0), path).exp(), density)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_velocity_is_a_conditional_mean(path: ProbabilityPath, t: float) -> None:
    """v(x, t) = E[c | x_t = x], by Bayes' rule and quadrature over x_0."""
    mixture, time = line(), torch.tensor(t)
    k = path.coefficients(time)
    x, x_0 = (
        path.interpolate(torch.linspace(-2, 3, 11), torch.linspace(-1, 1, 11), time)[0],
        torch.linspace(-9, 9, 4001),
    )
    eps = (x[:, None] - k.alpha * x_0) / k.sigma
    posterior = (data_density(mixture, x_0).log() - eps**2 / 2).softmax(1)
    conditional_mean = (posterior * (k.alpha_dot * x_0 + k.sigma_dot * eps)).sum(1)
    assert_close(mixture.velocity(x[:, None], time, path)[:, 0], conditional_mean)


def test_the_flow_keeps_every_quantile(path: ProbabilityPath) -> None:
    """On the line the exact ODE is the monotone map from noise to data: P(x_t <= its state) does not change with t."""
    mixture, times = line(), path.t_min + (1 - path.t_min) * torch.linspace(1, 0, 401) ** 3
    x_1 = path.coefficients(times[0]).sigma * torch.linspace(-3, 3, 25)[:, None]
    x_0 = integrate(lambda x, t: mixture.velocity(x, t, path), x_1, times, Heun())
    assert_close(cdf(mixture, x_0, times[-1], path), cdf(mixture, x_1, times[0], path), rtol=0, atol=1e-4)


def test_the_flow_takes_noise_to_the_moments_of_the_data(path: ProbabilityPath, generator: Generator) -> None:
    """From x_1 ~ p_1, the exact ODE ends in the ring's mean (zero) and second moments (r^2 + 2 s^2) / 2 I."""
    mixture, n, times = ring(6, 2.0, 0.3), 4000, path.t_min + (1 - path.t_min) * torch.linspace(1, 0, 101) ** 3
    z = torch.randn(n, 2, generator=generator)
    x_1 = path.interpolate(mixture.sample(n, generator), z, torch.tensor(1.0))[0]
    x_0 = integrate(lambda x, t: mixture.velocity(x, t, path), x_1, times, Heun())
    assert_close(x_0.mean(0), torch.zeros(2), rtol=0, atol=4 * 1.5 / math.sqrt(n))
    assert_close(x_0.T @ x_0 / n, 2.09 * torch.eye(2), rtol=0, atol=4 * 2.1 / math.sqrt(n))


def test_samples_follow_the_density(path: ProbabilityPath, generator: Generator) -> None:
    """Kolmogorov-Smirnov of 20,000 points, data at t = 0 and noised along the path, against the closed form."""
    mixture, t = line(), torch.tensor(0.4)
    x_0 = mixture.sample(20_000, generator)
    x_t = path.interpolate(x_0, torch.randn(20_000, 1, generator=generator), t)[0]
    for x, time in ((x_0, 0 * t), (x_t, t)):
        levels = cdf(mixture, x, time, path)  # uniform on (0, 1) if x has this cdf
        assert kstest(levels.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("modes", [1, 5, 8])
def test_the_modes_of_a_ring_are_equally_spaced(modes: int) -> None:
    """Every mode lies at the radius, neighbours at chord 2 r sin(pi / modes), weights sum to one."""
    mixture = ring(modes, radius=3.0, std=0.2)
    chords = torch.linalg.vector_norm(mixture.means - mixture.means.roll(1, 0), dim=1)
    assert_close(chords, torch.full((modes,), 6 * math.sin(math.pi / modes)))
    assert_close(torch.linalg.vector_norm(mixture.means, dim=1), torch.full((modes,), 3.0))
    assert_close((mixture.weights.sum(), mixture.stds.max()), (torch.tensor(1.0), torch.tensor(0.2)))
