"""Fréchet distances on Gaussians whose answer is known: errors, bias, extrapolation, and moments in files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fgm.evaluation.bias import bias_table, expected_bias, is_small
from fgm.evaluation.frechet import FeatureStatistics, frechet_distance, frechet_error
from fgm.evaluation.infinity import fd_infinity
from fgm.evaluation.moments import Moments, load_moments, save_moments
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

DIM = 8
SCALES = torch.linspace(0.5, 2, DIM, dtype=torch.float64)
TRUTH = Moments(None, torch.zeros(DIM, dtype=torch.float64), torch.diag(SCALES**2))
FAR = Moments(None, torch.full((DIM,), 0.1, dtype=torch.float64), torch.diag((1.2 * SCALES) ** 2))
TRUE_DISTANCE = DIM * 0.1**2 + (0.2 * SCALES).square().sum().item()  # commuting covariances: |m|^2 + sum (s - r)^2


def draws(n: int, index: int) -> Tensor:
    return SCALES * torch.randn(n, DIM, generator=keyed_generator("moments", index=index), dtype=torch.float64)


def test_the_error_of_a_distance_is_its_spread_over_draws() -> None:
    values = [frechet_distance(FeatureStatistics.of(draws(500, i)), FAR) for i in range(300)]
    errors = [frechet_error(draws(500, i), FAR) for i in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_the_bias_of_a_perfect_generator_is_what_is_expected() -> None:
    values = [frechet_distance(FeatureStatistics.of(draws(400, i)), TRUTH) for i in range(100)]
    assert expected_bias(TRUTH.covariance, 400) == pytest.approx(np.mean(values), rel=0.05)
    assert expected_bias(torch.eye(DIM), 100) == pytest.approx(DIM * (DIM + 5) / 400)


def test_a_bias_table_names_larger_numbers_of_samples() -> None:
    assert bias_table(torch.eye(4), 100) == (
        "0.09 at n = 100, 0.0045 at n = 2000, 0.0018 at n = 5000, 0.0009 at n = 10000, 0.00018 at n = 50000"
    )
    assert is_small(40_959, 2048) and not is_small(40_960, 2048)


def test_fd_infinity_removes_the_bias() -> None:
    """Over 40 draws of 400: the mean of fd is off by the bias, that of fd_infinity by a fraction of it."""
    sets = [draws(400, i) for i in range(40)]
    plain = np.mean([frechet_distance(FeatureStatistics.of(x), FAR) for x in sets]) - TRUE_DISTANCE
    lines = [fd_infinity(x, FAR) for x in sets]
    values = np.array([line.value for line in lines])
    assert abs(values.mean() - TRUE_DISTANCE) < 3 * values.std() / 40**0.5
    assert abs(values.mean() - TRUE_DISTANCE) < plain / 2
    within = [abs(line.value - TRUE_DISTANCE) < 1.96 * line.error for line in lines]
    assert np.mean(within) >= 0.8


def test_fd_infinity_of_too_few_samples_is_refused() -> None:
    with pytest.raises(UserError, match="32 or more, or leave fd_infinity out"):
        fd_infinity(draws(31, 0), FAR)


def test_moments_come_back_from_edms_layout(tmp_path: Path) -> None:
    statistics = FeatureStatistics.of(draws(100, 0))
    save_moments(statistics, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        assert sorted(file) == ["mu", "n", "sigma"]
        np.savez(tmp_path / "edm.npz", mu=file["mu"], sigma=file["sigma"])  # as EDM's fid.py writes it
        np.testing.assert_allclose(file["sigma"], np.cov(draws(100, 0).numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    ours, edm = (load_moments(tmp_path / name, DIM) for name in ("ours.npz", "edm.npz"))
    assert (ours.n, edm.n) == (100, None)
    assert torch.equal(ours.covariance, edm.covariance)
    assert frechet_distance(ours, statistics) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(edm, FAR) == frechet_distance(statistics, FAR)


def test_an_unknown_number_of_samples_is_left_out_of_the_file(tmp_path: Path) -> None:
    save_moments(TRUTH, tmp_path / "truth.npz")
    assert load_moments(tmp_path / "truth.npz", DIM).n is None


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("message, arrays", [
    ("mu (3,) and sigma (3, 3), and the extractor gives 8 features", {"mu": np.zeros(3), "sigma": np.eye(3)}),
    ("has no mu and sigma", {"mean": np.zeros(8)}),
    ("not finite", {"mu": np.full(8, np.nan), "sigma": np.eye(8)}),
    ("no npz of plain arrays", {"mu": np.array([{}], dtype=object), "sigma": np.eye(8)}),
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(message: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_moments(write(tmp_path / "bad.npz", **arrays), DIM)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no reference file"):
        load_moments(tmp_path / "none.npz", DIM)
    (tmp_path / "text.npz").write_text("mu sigma")
    with pytest.raises(UserError, match="no npz of plain arrays"):
        load_moments(tmp_path / "text.npz", DIM)
