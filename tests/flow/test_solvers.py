"""Fixed-step solvers: measured orders of convergence, exact steps, counted evaluations."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fgm.flow.analytic import gaussian
from fgm.flow.paths import ProbabilityPath, RectifiedPath, TrigonometricPath
from fgm.flow.solvers import Euler, Heun, Solver, even_times, integrate, trajectory
from fgm.flow.times import shift_time

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("path", [RectifiedPath(), TrigonometricPath()])
@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order_of_convergence(path: ProbabilityPath, shift: float, solver: Solver, order: int) -> None:
    """log error against log step has slope 1 for Euler, 2 for Heun, on a Gaussian's flow z -> mean + std z."""
    mean, std, x_1 = torch.tensor([0.7]), torch.tensor(0.6), torch.linspace(-2, 2, 9)[:, None]
    field = partial(gaussian(mean, std).velocity, path=path)
    steps, exact = np.array([64, 128, 256, 512]), mean + std * x_1
    grids = [shift_time(even_times(int(n), 0.0, x_1), shift) for n in steps]
    error = [(integrate(field, x_1, times, solver) - exact).abs().max() for times in grids]
    assert abs(np.polyfit(np.log(1 / steps), np.log(error), 1)[0] - order) < 0.1


def test_one_euler_step_is_x_minus_v() -> None:
    """From t = 1 to 0 in one step, x_0 = x - v(x, 1)."""
    x, field = torch.randn(5, 3), lambda x, t: torch.sin(x) + t
    assert_close(integrate(field, x, even_times(1, 0.0, x)), x - field(x, 1))


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
    x, times, field = torch.randn(5, 3), even_times(6, 0.0, torch.ones(())), lambda x, t: torch.sin(x) * t
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
        solve(field, torch.ones(2, 1), even_times(steps, 0.0, torch.ones(())), solver)
        assert len(asked) == steps * solver.nfe


@pytest.mark.parametrize("t_min", [0.0, 1e-3])
def test_times_are_even_from_one_to_the_least(t_min: float) -> None:
    """steps + 1 of them, and both ends exactly."""
    times = even_times(9, t_min, torch.ones(()))
    assert_close(times.diff(), torch.full((9,), -(1 - t_min) / 9))
    assert (times[0], times[-1]) == (1, t_min)
