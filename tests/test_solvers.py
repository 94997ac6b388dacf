"""Fixed-step solvers: measured orders of convergence, exact steps, counted evaluations."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fgm.analytic import gaussian
from fgm.paths import Path, RectifiedPath, TrigonometricPath
from fgm.solvers import Euler, Heun, Solver, TimeGrid, integrate, trajectory
from fgm.times import shift_time

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("path", [RectifiedPath(), TrigonometricPath()])
@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order_of_convergence(path: Path, shift: float, solver: Solver, order: int) -> None:
    """log error against log step has slope 1 for Euler, 2 for Heun, on a Gaussian's flow z -> mean + std z."""
    mean, std, x_1 = torch.tensor([0.7]), torch.tensor(0.6), torch.linspace(-2, 2, 9)[:, None]
    field = partial(gaussian(mean, std).velocity, path=path)
    steps, exact = np.array([64, 128, 256, 512]), mean + std * x_1
    error = [(integrate(field, x_1, TimeGrid(int(n), shift).times(x_1), solver) - exact).abs().max() for n in steps]
    assert abs(np.polyfit(np.log(1 / steps), np.log(error), 1)[0] - order) < 0.1


def test_one_euler_step_is_x_minus_v() -> None:
    """From t = 1 to 0 in one step, x_0 = x - v(x, 1)."""
    x, field = torch.randn(5, 3), lambda x, t: torch.sin(x) + t
    assert_close(integrate(field, x, TimeGrid(1).times(x)), x - field(x, 1))


@pytest.mark.parametrize(
    ("solver", "field", "x_0"),
    [
        (Euler(), lambda x, t: 2 * torch.ones_like(x), -2.0),
        (Heun(), lambda x, t: (2 + 6 * t) * torch.ones_like(x), -5.0),
    ],
)
def test_a_solver_is_exact_on_polynomials_of_its_order(solver: Solver, field: Callable, x_0: float) -> None:
    """Euler integrates constants and Heun affine functions of t without error, on any grid."""
    x = torch.zeros(2, 3)
    assert_close(integrate(field, x, torch.tensor([1.0, 0.8, 0.1, 0.0]), solver), torch.full((2, 3), x_0))


@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_a_trajectory_passes_through_the_integrals(solver: Solver) -> None:
    """State k of a trajectory is the integral up to times[k]; the first is x, the last is integrate's."""
    x, times, field = torch.randn(5, 3), TimeGrid(6).times(torch.ones(())), lambda x, t: torch.sin(x) * t
    states = trajectory(field, x, times, solver)
    assert torch.equal(states, torch.stack([integrate(field, x, times[: k + 1], solver) for k in range(7)]))
    assert torch.equal(states[0], x)


@pytest.mark.parametrize("solver", [Euler(), Heun()])
@pytest.mark.parametrize("steps", [1, 7])
def test_nfe_counts_the_evaluations(solver: Solver, steps: int) -> None:
    """steps * solver.nfe is the number of times that the field is asked, by integrate and by trajectory."""
    asked: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return x

    for solve in (integrate, trajectory):
        asked.clear()
        solve(field, torch.ones(2, 1), TimeGrid(steps).times(torch.ones(())), solver)
        assert len(asked) == steps * solver.nfe


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("t_max", "t_min"), [(1.0, 0.0), (0.97, 1e-3)])
def test_a_time_grid_is_the_shift_of_even_times(shift: float, t_max: float, t_min: float) -> None:
    """steps + 1 strictly decreasing times, even once the shift is undone, from t_max to t_min."""
    times = TimeGrid(9, shift, t_max, t_min).times(torch.ones(()))
    assert (times.diff() < 0).all()
    assert_close(shift_time(times, 1 / shift), torch.linspace(t_max, t_min, 10), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_the_whole_grid_runs_from_one_to_zero(shift: float) -> None:
    """Both ends are fixed points of the shift."""
    times = TimeGrid(9, shift).times(torch.ones(()))
    assert_close(times[[0, -1]], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-15)


def test_a_larger_shift_spends_more_steps_in_noise() -> None:
    """At shift s half of the steps lie above t = s / (1 + s)."""
    times = TimeGrid(10, 3.0).times(torch.ones(()))
    assert_close(times[5], torch.tensor(0.75))
