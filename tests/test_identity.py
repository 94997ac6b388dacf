"""FGM's gradient with an online network that errs: its gap in closed form, its estimates, the command that measures.

An affine generator and Gaussian data make every integrand quadratic in z and eps, so that the two nodes +1 and -1 in
each dimension give its mean exactly at each t.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from tiny_runs import Said, light, refused
from torch import Tensor
from torch.testing import assert_close

import fgm.cli.study_identity
from fgm.cli.studies.identity import runs
from fgm.cli.studies.identity.affine import AffineGenerator
from fgm.cli.studies.identity.cases import CASES
from fgm.cli.studies.identity.comparison import Comparison, noise, products
from fgm.cli.studies.identity.gradients import Draws, Problem, fgm_gradients, fit, true_gradient
from fgm.cli.studies.identity.rows import MIXTURES, crossing
from fgm.cli.studies.identity.table import table_of_identity
from fgm.cli.table import render
from fgm.flow import losses
from fgm.flow.analytic import affine_velocity, gaussian
from fgm.flow.paths import ProbabilityPath
from fgm.training import initialise
from fgm.utils.records import read_rows

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


def law(problem: Problem, live: bool = False) -> Callable[..., Tensor]:
    return problem.generator.law(problem.path, live)  # type: ignore[operator]


def astray(problem: Problem, x_t: Tensor, t: Tensor, _: Any) -> Tensor:
    """v_theta + e, for an e that is affine in x_t."""
    return law(problem)(x_t, t) + t[:, None] * (x_t @ DRIFT.to(x_t.dtype) + 0.2)


def lagging(problem: Problem, share: float, x_t: Tensor, t: Tensor, _: Any) -> Tensor:
    return torch.lerp(problem.teacher(x_t, t, None), law(problem)(x_t, t), share)


def in_position(problem: Problem, nodes: Draws, field: Callable[[Tensor], Tensor]) -> Tensor:
    """grad E w f(x_t), which moves x_t alone."""
    x_t, _, w = problem.at(nodes)
    return problem.gradient((w * field(x_t)).mean())


def in_law(problem: Problem, nodes: Draws, field: Callable[[Tensor], Tensor]) -> Tensor:
    """E w <f, dv>, which moves v_theta alone, at x_t fixed."""
    x_t, _, w = problem.at(nodes)
    x_t = x_t.detach()
    return problem.gradient((w * losses.inner(field(x_t).detach(), law(problem, live=True)(x_t, nodes.t))).mean())


def test_the_law_of_an_affine_generator(float64: None, path: ProbabilityPath) -> None:
    """Coordinate by coordinate it is the scalar Gaussian's; and W and W Q have one law for any rotation Q."""
    x, t, std, bias = torch.randn(5, 2), torch.rand(5) * 0.9 + 0.05, torch.tensor([0.3, 1.2]), torch.tensor([0.4, -1.0])
    found = affine_velocity(x, t, path, std.diag(), bias)
    for i in range(2):
        assert_close(found[:, i : i + 1], gaussian(bias[i : i + 1], std[i]).velocity(x[:, i : i + 1], t, path))
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert_close(affine_velocity(x, t, path, std.diag() @ turn, bias), found)


def test_with_v_theta_itself_there_is_no_gap(problem: Problem, nodes: Draws) -> None:
    truth = true_gradient(problem, law(problem, live=True), nodes)
    assert_close(fgm_gradients(problem, law(problem), nodes).sum(0), truth, rtol=0, atol=1e-10 * float(truth.norm()))


def test_an_online_network_that_errs_by_e_leaves_the_gap_1(problem: Problem, nodes: Draws) -> None:
    """grad E w (L_1 + L_2) = grad J + 2 E w <e, dv> - grad E w |e|^2, for an e that is no shrunk delta."""

    def e(x_t: Tensor) -> Tensor:
        return astray(problem, x_t, nodes.t, None) - law(problem)(x_t, nodes.t)

    truth = true_gradient(problem, law(problem, live=True), nodes)
    gap = fgm_gradients(problem, partial(astray, problem), nodes).sum(0) - truth
    square = in_position(problem, nodes, lambda x_t: losses.squared_norm(e(x_t)))
    assert gap.norm() > truth.norm() / 100
    assert_close(gap, 2 * in_law(problem, nodes, e) - square, rtol=0, atol=1e-10 * float(truth.norm()))


@pytest.mark.parametrize("share", [1 / 4, 5 / 12, 1 / 2, 2 / 3, 1])
def test_the_gradient_of_a_network_that_lags_is_3_and_4(problem: Problem, nodes: Draws, share: float) -> None:
    def delta(x_t: Tensor) -> Tensor:
        return problem.teacher(x_t, nodes.t, None) - law(problem)(x_t, nodes.t)

    a = in_position(problem, nodes, lambda x_t: losses.squared_norm(delta(x_t)))
    b = -2 * in_law(problem, nodes, delta)
    l_1, l_2 = fgm_gradients(problem, partial(lagging, problem, share), nodes)
    for lambda_1, _ in MIXTURES.values():
        told = share * (b + (2 - (2 - lambda_1) * share) * a)
        assert_close(lambda_1 * l_1 + l_2, told, rtol=0, atol=1e-10 * float(a.norm() + b.norm()))
    truth = true_gradient(problem, law(problem, live=True), nodes)
    assert_close((2 - 1 / share) * l_1 + l_2, share * truth, rtol=0, atol=1e-10 * float(truth.norm()))
    comparison = Comparison(torch.stack([l_1, l_2, truth]) @ torch.stack([l_1, l_2, truth]).T)
    assert comparison.best_lambda_1 == pytest.approx(2 - 1 / share, abs=1e-6)
    assert fit(problem, partial(lagging, problem, share), law(problem), [nodes]) == pytest.approx(
        ((1 - share) ** 2, share)
    )


def test_products_are_over_pairs_of_different_parts(float64: None) -> None:
    parts = list(torch.randn(4, 3, 7))
    pairs = [parts[i] @ parts[j].T for i, j in product(range(4), repeat=2) if i != j]
    assert_close(products(parts), torch.stack(pairs).mean(0))


def test_noise_moves_no_product_away_from_what_it_is(float64: None) -> None:
    """Of eight parts, whose noise is far larger than the gradients; a plain mean's square would be 2.5 too large."""
    gradients, one = torch.zeros(2, 20), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    gradients[:, :2] = torch.linalg.cholesky(one)
    many = [gradients + torch.randn(8, 2, 20) for _ in range(500)]
    assert_close(torch.stack([products(list(parts)) for parts in many]).mean(0), one, rtol=0, atol=0.2)
    plain = torch.stack([parts.mean(0) @ parts.mean(0).T for parts in many]).mean(0)
    assert_close(plain.diagonal(), torch.full((2,), 3.5), rtol=0, atol=0.2)


def test_cosine_norm_and_gap_of_known_gradients(float64: None) -> None:
    """grad L_1 = (1, 0), grad L_2 = (0, 2), the reference (1, 1)."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    comparison = Comparison(rows @ rows.T)
    assert comparison.cosine(1, 0) == pytest.approx(0.5**0.5) and comparison.norm(0, 1) == pytest.approx(2**0.5)
    assert comparison.gap(1, 1) == pytest.approx(0.5**0.5) and comparison.best_lambda_1 == pytest.approx(2)
    assert noise([*rows[:1], *rows[:1]]) == pytest.approx(1) and noise(list(rows[:2])) == 0


def test_where_l_1_stops_to_harm() -> None:
    assert crossing([1.0, 0.1, 0.01], [30.0, 12.0, 1.0], [20.0, 10.0, 3.0]) == pytest.approx(0.1 * 10**-0.5)
    assert crossing([1.0, 0.1], [9.0, 8.0], [10.0, 10.0]) is None and crossing([0.0], [0.0], [1.0]) is None


TINY = ["cases=gaussian", "seeds=1", "turns=1,4", "reference=6", "draws=64", "network.width=16", "network.depth=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("identity")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FIT_ITERATIONS": 5, "FIT_POOL": 200, "FIT_STEPS": 5}.items():
            patch.setattr(initialise, name, value)
        fgm.cli.study_identity.main([*TINY, f"outputs={made}", f"experiments={made}"])
    return made


def test_a_row_a_point_and_a_picture(place: Path) -> None:
    rows = read_rows(place / "identity" / "runs.jsonl")
    assert [row["turns"] for row in rows] == [1, 4, 6, None]
    assert {"commit", "config_digest", "study_digest", "seed", "wall_s", "images_seen", "date", "device"} <= rows[
        0
    ].keys()
    exact = {r["metric"]: r["value"] for r in rows[-1]["results"]}
    assert exact["fit_error"] == 0 and exact["covered"] == pytest.approx(1)
    assert matplotlib.image.imread(place / "identity" / "identity.png").std() > 0.05
    text = render("<!-- table: identity -->\n<!-- end -->", place)
    assert text.count("| gaussian |") == 4 and "| gaussian | v_θ itself | 0 |" in text
    assert "v_theta in closed form" in text and table_of_identity(rows)[0] in text and "gaussian: L₁ harms" in text


def test_what_has_a_row_is_not_measured_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "results", lambda *_: pytest.fail("measured again"))
    before = (place / "identity" / "runs.jsonl").read_text()
    fgm.cli.study_identity.main([*TINY, f"outputs={place}", f"experiments={place}"])
    assert (place / "identity" / "runs.jsonl").read_text() == before
    with pytest.raises(pytest.fail.Exception):
        fgm.cli.study_identity.main([*TINY, "draws=80", f"outputs={place}", f"experiments={place}"])


BAD = {
    "cases=gausian": "cases = gausian: unknown; did you mean gaussian?",
    "turns=0": "turns = 0 must be a whole number from 1",
    "turns=9 reference=9": "gaussian: turns = 9 must be below reference = 9",
    "draws=3": "draws = 3 must be a whole number from 16",
    "seeds=0": "seeds = 0 must be a whole number from 1",
    "experiment=digits_fgm": "give cases=",
    "training.cyclez=2": "did you mean training.cycles?",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line(arguments: str, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BAD[arguments] in refused(fgm.cli.study_identity.main, arguments.split(), capsys, monkeypatch)


def test_bad_input_is_refused_before_torch_is_imported() -> None:
    assert "did you mean mixture?" in light("study_identity", ["cases=mixtur"])


def test_every_case_composes() -> None:
    for case in CASES.values():
        config = case.config(0, [])
        assert config["recipe"] == case.recipe and max(case.turns) < case.reference
    assert math.isclose(2 - 2 * 1.2, MIXTURES["sid"][0])
