"""Affine paths: (x_0, eps) -> (x_t, c) can be inverted, and every derivative is one."""

from collections.abc import Callable
from math import exp, expm1, sqrt
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import jvp
from torch.testing import assert_close

from fgm.flow.paths import (
    ProbabilityPath,
    RectifiedPath,
    TrigonometricPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    expand_like,
)

pytestmark = pytest.mark.usefixtures("float64")


class Point(NamedTuple):
    x_0: Tensor
    eps: Tensor
    t: Tensor
    x_t: Tensor
    c: Tensor


@pytest.fixture
def point(path: ProbabilityPath) -> Point:
    x_0, eps, t = torch.randn(25, 2, 3), torch.randn(25, 2, 3), torch.linspace(0.02, 0.98, 25)
    return Point(x_0, eps, t, *path.interpolate(x_0, eps, t))


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt for f that takes each time to a row."""
    return jvp(f, (t,), (torch.ones_like(t),))[1]


def test_the_conditional_velocity_gives_back_data_noise_and_score(path: ProbabilityPath, point: Point) -> None:
    """With v = c, the three readings of a velocity are x_0, eps and -eps / sigma."""
    x_0, eps, t, x_t, c = point
    assert_close(path.x_0_from_velocity(x_t, c, t), x_0)
    assert_close(path.eps_from_velocity(x_t, c, t), eps)
    assert_close(path.score_from_velocity(x_t, c, t), -eps / path.at(t, eps).sigma)


@pytest.mark.parametrize("quantity", ["x_0", "eps", "score"])
def test_conversions_round_trip(path: ProbabilityPath, point: Point, quantity: str) -> None:
    """velocity -> q -> velocity and q -> velocity -> q are identities, at any x_t."""
    from_velocity, to_velocity = getattr(path, f"{quantity}_from_velocity"), getattr(path, f"velocity_from_{quantity}")
    x_t, any_field, t = point.eps, point.x_0, point.t
    assert_close(to_velocity(x_t, from_velocity(x_t, any_field, t), t), any_field)
    assert_close(from_velocity(x_t, to_velocity(x_t, any_field, t), t), any_field)


def test_composed_conversions_obey_tweedie(path: ProbabilityPath, point: Point) -> None:
    """x_0 -> eps, eps -> score and score -> x_0, each through a velocity, are the closed forms."""
    x_t, q, t = point.eps, point.x_0, point.t
    k = path.at(t, x_t)
    assert_close(path.eps_from_velocity(x_t, path.velocity_from_x_0(x_t, q, t), t), (x_t - k.alpha * q) / k.sigma)
    assert_close(path.score_from_velocity(x_t, path.velocity_from_eps(x_t, q, t), t), -q / k.sigma)
    tweedie = (x_t + k.sigma**2 * q) / k.alpha
    assert_close(path.x_0_from_velocity(x_t, path.velocity_from_score(x_t, q, t), t), tweedie)


def test_dotted_coefficients_are_time_derivatives(path: ProbabilityPath, point: Point) -> None:
    """alpha', sigma' equal autograd's derivatives of alpha, sigma."""
    k = path.coefficients(point.t)
    assert_close(derivative(lambda t: path.coefficients(t).alpha, point.t), k.alpha_dot)
    assert_close(derivative(lambda t: path.coefficients(t).sigma, point.t), k.sigma_dot)


def test_c_is_the_time_derivative_of_x_t(path: ProbabilityPath, point: Point) -> None:
    """c = dx_t/dt at fixed x_0 and eps."""
    assert_close(derivative(lambda t: path.interpolate(point.x_0, point.eps, t)[0], point.t), point.c)


def test_kappa_is_the_growth_of_the_noise_to_signal_ratio(path: ProbabilityPath, point: Point) -> None:
    """kappa = alpha^2 d(sigma / alpha)/dt > 0: noise only gains on the data."""
    k, growth = path.coefficients(point.t), derivative(lambda t: path.at(t, t).sigma / path.at(t, t).alpha, point.t)
    assert_close(k.kappa, k.alpha**2 * growth)
    assert (k.kappa > 0).all()
    assert path.coefficients(torch.tensor(1.0)).kappa > 0


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"),
    [
        (RectifiedPath(), 0, 1),
        (TrigonometricPath(), 0, 1),
        (VarianceExplodingPath(7.0), 1, 7),
        (VariancePreservingPath(0.3, 5.0), exp(-5.3 / 4), sqrt(-expm1(-5.3 / 2))),
    ],
)
def test_a_path_leads_from_the_data_to_its_noise(path: ProbabilityPath, alpha: float, sigma: float) -> None:
    """alpha_0 = 1 and sigma_0 = 0 exactly; alpha_1 and sigma_1 in closed form."""
    k = path.coefficients(torch.tensor(0.0))
    assert (k.alpha, k.sigma) == (1, 0)
    k = path.coefficients(torch.tensor(1.0))
    assert_close((k.alpha, k.sigma), (torch.tensor(float(alpha)), torch.tensor(float(sigma))))


@pytest.mark.parametrize("path", [VariancePreservingPath(), VariancePreservingPath(0.5, 3.0), TrigonometricPath()])
def test_unit_variance_is_preserved(path: ProbabilityPath) -> None:
    """alpha^2 + sigma^2 = 1, so that data of variance one keep it at every t."""
    k = path.coefficients(torch.linspace(0, 1, 101))
    assert_close(k.alpha**2 + k.sigma**2, torch.ones(101), rtol=0, atol=1e-14)


def test_the_preserving_path_has_a_linear_beta() -> None:
    """-2 alpha' / alpha = beta_min + (beta_max - beta_min) t, and -2 log alpha_1 is its integral."""
    path, t = VariancePreservingPath(0.3, 5.0), torch.linspace(0.01, 1, 50)
    k = path.coefficients(t)
    assert_close(-2 * k.alpha_dot / k.alpha, 0.3 + 4.7 * t)
    assert_close(-2 * k.alpha[-1].log(), torch.tensor((0.3 + 5.0) / 2))


def test_the_prior_is_x_1_without_data(path: ProbabilityPath) -> None:
    """prior(z) = sigma_1 z, which is x_1 around x_0 = 0."""
    z = torch.randn(5, 3)
    assert_close(path.prior(z), path.interpolate(torch.zeros_like(z), z, torch.ones(5))[0])


@pytest.mark.parametrize("dims", [(), (3,), (1, 2, 2)])
def test_time_broadcasts_over_the_batch(path: ProbabilityPath, dims: tuple[int, ...]) -> None:
    """t of shape (batch,) is one time a row, and a scalar t is the same time for all rows."""
    x_0, eps, t = torch.randn(4, *dims), torch.randn(4, *dims), torch.tensor([0.1, 0.4, 0.7, 0.9])
    rows = [path.interpolate(x, e, s) for x, e, s in zip(x_0, eps, t, strict=True)]
    assert_close(path.interpolate(x_0, eps, t), tuple(map(torch.stack, zip(*rows, strict=True))))
    assert_close(path.interpolate(x_0, eps, t[1]), path.interpolate(x_0, eps, t[1].expand(4)))
    assert expand_like(t, x_0).shape == (4, *(1 for _ in dims))
