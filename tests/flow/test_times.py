"""Timestep densities: each is one, and its samples follow it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from scipy.stats import kstest
from torch import Generator, Tensor
from torch.testing import assert_close

from fgm.flow.times import (
    EDGE,
    Annealed,
    Beta,
    CosMap,
    LogitNormal,
    Mode,
    Shifted,
    TimestepDensity,
    Uniform,
    shift_time,
)

pytestmark = pytest.mark.usefixtures("float64")

SMOOTH = (
    *(Uniform(), LogitNormal(), LogitNormal(math.log(2), 1.6), Mode(), Mode(-0.6), Mode(0.0), CosMap()),
    *(Beta(), Beta(2.0, 3.0), Beta(1.5, 0.8)),
)
ANNEALED = Annealed(LogitNormal(0.5, 0.5), Beta(2.0, 3.0), until=0.5)
DENSITIES = (
    *SMOOTH,
    ANNEALED.at(0.2),
    Shifted(ANNEALED, 3.0).at(0.2),
    *(Shifted(base, 3.0) for base in SMOOTH),
    *(Shifted(base, 0.4) for base in SMOOTH),
)


@pytest.fixture(params=DENSITIES, ids=str)
def density(request: pytest.FixtureRequest) -> TimestepDensity:
    return request.param


def logit_grid() -> tuple[Tensor, Tensor]:
    """Times t = sigmoid(y) on an even grid of y, and dt/dy: the trapezoid rule in y is spectrally accurate."""
    y = torch.linspace(-30, 30, 6001)
    return torch.sigmoid(y), torch.sigmoid(y) * torch.sigmoid(-y)


def test_a_density_integrates_to_one(density: TimestepDensity) -> None:
    """The integral of p over (0, 1) is 1."""
    t, slope = logit_grid()
    mass = torch.trapezoid(density.log_density(t).exp() * slope, dx=0.01)
    assert_close(mass, torch.tensor(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [*DENSITIES, Uniform(0.2, 0.9), Shifted(Uniform(0.2, 0.9), 3.0)], ids=str)
def test_samples_follow_the_density(density: TimestepDensity, generator: Generator) -> None:
    """Kolmogorov-Smirnov of 20,000 samples against the integral of the density."""
    t, slope = logit_grid()
    cdf = cumulative_trapezoid((density.log_density(t).exp() * slope).numpy(), dx=0.01, initial=0)
    samples = density.sample(20_000, generator, torch.float64).numpy()
    assert kstest(samples, lambda s: np.interp(s, t, cdf)).pvalue > 1e-3


def test_a_seed_determines_the_samples(density: TimestepDensity) -> None:
    """The same seed gives the same times, another seed other ones, and the global generator is not asked."""
    before = torch.get_rng_state()
    first, again, other = (density.sample(100, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_annealed_density_starts_as_the_one_ends_as_the_other_and_is_their_mean_half_way() -> None:
    t, _ = logit_grid()
    start, end = ANNEALED.start.log_density(t), ANNEALED.end.log_density(t)
    for progress, expected in ((0.0, start), (0.5, end), (1.0, end), (0.25, ((start.exp() + end.exp()) / 2).log())):
        assert_close(ANNEALED.at(progress).log_density(t), expected, rtol=1e-12, atol=1e-12)
    assert LogitNormal().at(0.7) == LogitNormal()


@pytest.mark.parametrize("mean", [-40.0, 0.0, 40.0])
def test_samples_stay_off_the_ends(mean: float, generator: Generator) -> None:
    """However extreme the density, EDGE <= t <= 1 - EDGE."""
    t = LogitNormal(mean, 20.0).sample(1000, generator, torch.float64)
    assert t.min() >= EDGE
    assert t.max() <= 1 - EDGE


def test_a_uniform_density_is_flat_inside_and_zero_outside() -> None:
    """p = 1 / (high - low) on [low, high], 0 elsewhere; an empty interval is refused."""
    density = Uniform(0.25, 0.75).log_density(torch.tensor([0.1, 0.3, 0.5, 0.9])).exp()
    assert_close(density, torch.tensor([0.0, 2.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="must be below"):
        Uniform(0.5, 0.5)


@pytest.mark.parametrize("flat", [Mode(0.0), Beta(1.0, 1.0), Shifted(Uniform(), 1.0)], ids=str)
def test_degenerate_members_are_uniform(flat: TimestepDensity) -> None:
    """Mode with scale 0, Beta(1, 1) and a shift by 1 all have density 1."""
    t = torch.linspace(0.01, 0.99, 99)
    assert_close(flat.log_density(t), torch.zeros(99), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [0.2, 3.0])
def test_a_shifted_logit_normal_is_logit_normal(shift: float) -> None:
    """The shift adds log s to logit t: in density, and in samples of one seed."""
    shifted, moved = Shifted(LogitNormal(0.3, 0.8), shift), LogitNormal(0.3 + math.log(shift), 0.8)
    t = torch.linspace(0.01, 0.99, 99)
    assert_close(shifted.log_density(t), moved.log_density(t))
    draws = [d.sample(100, torch.Generator().manual_seed(1), torch.float64) for d in (shifted, moved)]
    assert_close(draws[0], draws[1])


def test_shifts_form_a_group() -> None:
    """Shift by s then 1/s is the identity, s then r is r s, and both ends stay put."""
    t = torch.linspace(0, 1, 101)
    assert_close(shift_time(shift_time(t, 3.0), 1 / 3), t, rtol=0, atol=1e-14)
    assert_close(shift_time(shift_time(t, 3.0), 0.7), shift_time(t, 2.1), rtol=0, atol=1e-14)
    assert_close(shift_time(t, 3.0)[[0, -1]], torch.tensor([0.0, 1.0]), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.75])
def test_the_slope_of_the_mode_map_is_its_derivative(scale: float) -> None:
    """slope = dt/du <= 0, so that time_of decreases on the whole allowed range of scale."""
    u = torch.linspace(0, 1, 101, requires_grad=True)
    slope = torch.autograd.grad(Mode(scale).time_of(u).sum(), u)[0]
    assert_close(Mode(scale).slope(u.detach()), slope)
    assert (slope < 1e-12).all()
