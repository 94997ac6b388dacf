"""FGM's gradient with an online network that errs: its gap in closed form, its estimates, the study that measures it.

An affine generator and Gaussian data make every integrand quadratic in z and eps, so that the two nodes +1 and -1 in
each dimension give its mean exactly at each t.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fgm.flow import losses
from fgm.flow.analytic import affine_velocity, gaussian
from fgm.flow.paths import ProbabilityPath
from fgm.training import initialize
from fgm.utils.errors import UserError
from fgm.utils.records import read_rows

PAGE = Path(__file__).parents[2] / "experiments" / "identity" / "README.md"
sys.path.insert(0, str(PAGE.parent))

import results  # noqa: E402
import study  # noqa: E402
from gradients import (  # noqa: E402
    AffineGenerator,
    Comparison,
    Draws,
    Problem,
    exact_gradient,
    fgm_gradients,
    fit,
    half_cosine,
    products,
)

TIMES = (0.15, 0.4, 0.6, 0.85)
DRIFT = torch.tensor([[0.3, -0.2], [0.1, 0.4]])


@pytest.fixture
def problem(float64: None, path: ProbabilityPath) -> Problem:
    generator = AffineGenerator(torch.tensor([[0.4, 0.1], [-0.2, 0.3]]), torch.tensor([0.5, -0.7]))
    data = gaussian(torch.tensor([1.0, 0.0]), torch.tensor(0.6))
    return Problem(generator, lambda x, t, _: data.velocity(x, t, path), path, losses.x_0_weight)


@pytest.fixture
def nodes(float64: None) -> Draws:
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=4))).repeat(len(TIMES), 1)
    return Draws(signs[:, :2], None, signs[:, 2:], torch.tensor(TIMES).repeat_interleave(16))


def v_theta(problem: Problem, differentiable: bool = False) -> Callable[..., Tensor]:
    return problem.generator.velocity(problem.path, differentiable)  # type: ignore[operator]


def wrong(problem: Problem, x_t: Tensor, t: Tensor, _: Any) -> Tensor:
    """v_theta + e, for an e that is affine in x_t."""
    return v_theta(problem)(x_t, t) + t[:, None] * (x_t @ DRIFT.to(x_t.dtype) + 0.2)


def lagging(problem: Problem, share: float, x_t: Tensor, t: Tensor, _: Any) -> Tensor:
    return torch.lerp(problem.teacher(x_t, t, None), v_theta(problem)(x_t, t), share)


def position_gradient(problem: Problem, nodes: Draws, field: Callable[[Tensor], Tensor]) -> Tensor:
    """grad E w f(x_t), which moves x_t alone."""
    x_t, _, w = problem.noisy(nodes)
    return problem.gradient((w * field(x_t)).mean())


def law_gradient(problem: Problem, nodes: Draws, field: Callable[[Tensor], Tensor]) -> Tensor:
    """E w <f, dv>, which moves v_theta alone, at x_t fixed."""
    x_t, _, w = problem.noisy(nodes)
    x_t = x_t.detach()
    return problem.gradient(
        (w * losses.inner(field(x_t).detach(), v_theta(problem, differentiable=True)(x_t, nodes.t))).mean()
    )


def test_affine_velocity_is_the_scalar_gaussians_in_each_coordinate_and_invariant_to_rotations_of_z(
    float64: None, path: ProbabilityPath
) -> None:
    x, t, std, bias = torch.randn(5, 2), torch.rand(5) * 0.9 + 0.05, torch.tensor([0.3, 1.2]), torch.tensor([0.4, -1.0])
    velocity = affine_velocity(x, t, path, std.diag(), bias)
    for i in range(2):
        assert_close(velocity[:, i : i + 1], gaussian(bias[i : i + 1], std[i]).velocity(x[:, i : i + 1], t, path))
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert_close(affine_velocity(x, t, path, std.diag() @ turn, bias), velocity)


def test_fgm_gradient_at_v_theta_is_exact(problem: Problem, nodes: Draws) -> None:
    truth = exact_gradient(problem, v_theta(problem, differentiable=True), nodes)
    assert_close(
        fgm_gradients(problem, v_theta(problem), nodes).sum(0), truth, rtol=0, atol=1e-10 * float(truth.norm())
    )


def test_gap_of_an_online_error_is_equation_1(problem: Problem, nodes: Draws) -> None:
    """grad E w (L_1 + L_2) = grad J + 2 E w <e, dv> - grad E w |e|^2, for an e that is not a multiple of delta."""

    def e(x_t: Tensor) -> Tensor:
        return wrong(problem, x_t, nodes.t, None) - v_theta(problem)(x_t, nodes.t)

    truth = exact_gradient(problem, v_theta(problem, differentiable=True), nodes)
    gap = fgm_gradients(problem, partial(wrong, problem), nodes).sum(0) - truth
    square = position_gradient(problem, nodes, lambda x_t: losses.squared_norm(e(x_t)))
    assert gap.norm() > truth.norm() / 100
    assert_close(gap, 2 * law_gradient(problem, nodes, e) - square, rtol=0, atol=1e-10 * float(truth.norm()))


@pytest.mark.parametrize("share", [1 / 4, 5 / 12, 1 / 2, 2 / 3, 1])
def test_gradient_of_a_lagging_network_is_equations_3_and_4(problem: Problem, nodes: Draws, share: float) -> None:
    def delta(x_t: Tensor) -> Tensor:
        return problem.teacher(x_t, nodes.t, None) - v_theta(problem)(x_t, nodes.t)

    a = position_gradient(problem, nodes, lambda x_t: losses.squared_norm(delta(x_t)))
    b = -2 * law_gradient(problem, nodes, delta)
    l_1, l_2 = fgm_gradients(problem, partial(lagging, problem, share), nodes)
    for lambda_1, _ in results.MIXTURES.values():
        expected = share * (b + (2 - (2 - lambda_1) * share) * a)
        assert_close(lambda_1 * l_1 + l_2, expected, rtol=0, atol=1e-10 * float(a.norm() + b.norm()))
    truth = exact_gradient(problem, v_theta(problem, differentiable=True), nodes)
    assert_close((2 - 1 / share) * l_1 + l_2, share * truth, rtol=0, atol=1e-10 * float(truth.norm()))
    comparison = Comparison(torch.stack([l_1, l_2, truth]) @ torch.stack([l_1, l_2, truth]).T)
    assert comparison.best_lambda_1 == pytest.approx(2 - 1 / share, abs=1e-6)
    assert fit(problem, partial(lagging, problem, share), v_theta(problem), [nodes]) == pytest.approx(
        ((1 - share) ** 2, share)
    )


def test_products_average_over_pairs_of_different_parts(float64: None) -> None:
    parts = list(torch.randn(4, 3, 7))
    pairs = [parts[i] @ parts[j].T for i, j in product(range(4), repeat=2) if i != j]
    assert_close(products(parts), torch.stack(pairs).mean(0))


def test_products_are_unbiased_under_noise(float64: None) -> None:
    """Of eight parts, whose noise is far larger than the gradients; a plain mean's square would be 2.5 too large."""
    gradients, one = torch.zeros(2, 20), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    gradients[:, :2] = torch.linalg.cholesky(one)
    many = [gradients + torch.randn(8, 2, 20) for _ in range(500)]
    assert_close(torch.stack([products(list(parts)) for parts in many]).mean(0), one, rtol=0, atol=0.2)
    plain = torch.stack([parts.mean(0) @ parts.mean(0).T for parts in many]).mean(0)
    assert_close(plain.diagonal(), torch.full((2,), 3.5), rtol=0, atol=0.2)


def test_cosine_norm_gap_and_best_lambda_1_of_known_gradients(float64: None) -> None:
    """grad L_1 = (1, 0), grad L_2 = (0, 2), the reference (1, 1)."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    comparison = Comparison(rows @ rows.T)
    assert comparison.cosine(1, 0) == pytest.approx(0.5**0.5) and comparison.norm(0, 1) == pytest.approx(2**0.5)
    assert comparison.gap(1, 1) == pytest.approx(0.5**0.5) and comparison.best_lambda_1 == pytest.approx(2)
    assert half_cosine([*rows[:1], *rows[:1]]) == pytest.approx(1) and half_cosine(list(rows[:2])) == 0


def test_crossing_interpolates_in_the_logarithm() -> None:
    assert results.crossing([1.0, 0.1, 0.01], [30.0, 12.0, 1.0], [20.0, 10.0, 3.0]) == pytest.approx(0.1 * 10**-0.5)
    assert (
        results.crossing([1.0, 0.1], [9.0, 8.0], [10.0, 10.0]) is None and results.crossing([0.0], [0.0], [1.0]) is None
    )


TINY = ["cases=gaussian", "seeds=1", "turns=1,4", "reference=6", "draws=64", "network.width=16", "network.depth=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("identity")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FIT_ITERATIONS": 5, "FIT_POOL": 200, "FIT_STEPS": 5}.items():
            patch.setattr(initialize, name, value)
        study.main([*TINY, f"outputs={made}", f"experiments={made}"])
    return made


def test_study_writes_a_row_for_each_point_and_draws_them(folder: Path) -> None:
    rows = read_rows(folder / "identity" / "runs.jsonl")
    assert [row["turns"] for row in rows] == [1, 4, 6, None]
    origin = {"commit", "config_digest", "study_digest", "seed", "wall_s", "images_seen", "date", "device"}
    assert origin <= rows[0].keys()
    exact = {r["metric"]: r["value"] for r in rows[-1]["results"]}
    assert exact["fit_error"] == 0 and exact["covered"] == pytest.approx(1)
    assert matplotlib.image.imread(folder / "identity" / "identity.png").std() > 0.05


def test_study_skips_points_that_have_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "compare", lambda *_: pytest.fail("measured again"))
    before = (folder / "identity" / "runs.jsonl").read_text()
    study.main([*TINY, f"outputs={folder}", f"experiments={folder}"])
    assert (folder / "identity" / "runs.jsonl").read_text() == before
    with pytest.raises(pytest.fail.Exception):
        study.main([*TINY, "draws=80", f"outputs={folder}", f"experiments={folder}"])


def test_page_holds_the_table_of_the_recorded_rows() -> None:
    page = PAGE.read_text()
    assert results.table(read_rows(PAGE.with_name("runs.jsonl")))[0] in page
    assert results.with_table(page, read_rows(PAGE.with_name("runs.jsonl"))) == page


@pytest.mark.parametrize(
    "arguments, message",
    [("cases=gausian", "did you mean gaussian?"), ("turns=9 reference=9", "turns = 9 must be below reference = 9")],
)
def test_study_refuses_unknown_cases_and_short_references(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        study.main(arguments.split())


def test_every_case_composes() -> None:
    for case in study.CASES.values():
        assert case.config(0, [])["experiment"] == case.experiment and max(case.updates) < case.reference
    assert math.isclose(2 - 2 * 1.2, results.MIXTURES["sid"][0])
