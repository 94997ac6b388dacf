"""Fréchet distances equal closed forms; their error, bias and extrapolation hold; moments roundtrip through files."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from fgm.evaluation.frechet import Moments, bias_warning, expected_bias, fd_infinity, frechet_distance, frechet_error
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

DIM = 8
SCALES = torch.linspace(0.5, 2, DIM, dtype=torch.float64)
TRUTH = Moments(torch.zeros(DIM, dtype=torch.float64), torch.diag(SCALES**2), None)
FAR = Moments(torch.full((DIM,), 0.1, dtype=torch.float64), torch.diag((1.2 * SCALES) ** 2), None)
TRUE_DISTANCE = DIM * 0.1**2 + (0.2 * SCALES).square().sum().item()  # commuting covariances: |m|^2 + sum (s - r)^2


def draws(n: int, index: int) -> Tensor:
    return SCALES * torch.randn(n, DIM, generator=keyed_generator("moments", index=index), dtype=torch.float64)


def normal(n: int, d: int, index: int = 0) -> Tensor:
    return torch.randn(n, d, generator=keyed_generator("test", index=index), dtype=torch.float64)


def test_frechet_distance_of_shifted_and_scaled_sets_is_the_closed_form() -> None:
    """For y = 2 x + 1, whatever x: |mean x + 1|^2 + tr S, since the roots commute."""
    x = normal(500, 6)
    p, q = Moments.of(x), Moments.of(2 * x + 1)
    expected = (p.mean + 1).square().sum() + p.covariance.trace()
    assert frechet_distance(p, q) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(p, p) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_equals_the_formula_by_scipy() -> None:
    x, y = normal(400, 5), normal(300, 5, 1) @ normal(5, 5, 2)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * root)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_moments_of_batches_are_those_of_all_features() -> None:
    x = normal(100, 4)
    parts, whole = Moments.of_batches(x.split(37)), Moments.of(x)
    assert parts.n == whole.n
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-12)


def test_singular_covariance_is_an_error() -> None:
    with pytest.raises(ValueError, match="use more samples"):
        frechet_distance(Moments.of(normal(5, 5)), Moments.of(normal(100, 5)))


def test_frechet_error_is_the_spread_over_draws() -> None:
    values = [frechet_distance(Moments.of(draws(500, i)), FAR) for i in range(300)]
    errors = [frechet_error(draws(500, i), FAR) for i in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_expected_bias_is_the_mean_distance_of_a_perfect_generator() -> None:
    values = [frechet_distance(Moments.of(draws(400, i)), TRUTH) for i in range(100)]
    assert expected_bias(TRUTH.covariance, 400) == pytest.approx(np.mean(values), rel=0.05)
    assert expected_bias(torch.eye(DIM), 100) == pytest.approx(DIM * (DIM + 5) / 400)


def test_few_samples_are_warned_of_with_the_bias_at_larger_numbers() -> None:
    table = "0.114 at n = 79, 0.0045 at n = 2000, 0.0018 at n = 5000, 0.0009 at n = 10000, 0.00018 at n = 50000"
    assert table in (bias_warning(torch.eye(4), 79) or "") and bias_warning(torch.eye(4), 80) is None


def test_fd_infinity_removes_the_bias() -> None:
    """Over 40 draws of 400: the mean of fd is off by the bias, that of fd_infinity by a fraction of it."""
    sets = [draws(400, i) for i in range(40)]
    plain = np.mean([frechet_distance(Moments.of(x), FAR) for x in sets]) - TRUE_DISTANCE
    lines = [fd_infinity(x, FAR) for x in sets]
    values = np.array([line.value for line in lines])
    assert abs(values.mean() - TRUE_DISTANCE) < 3 * values.std() / 40**0.5
    assert abs(values.mean() - TRUE_DISTANCE) < plain / 2
    within = [abs(line.value - TRUE_DISTANCE) < 1.96 * line.error for line in lines]
    assert np.mean(within) >= 0.8


def test_fd_infinity_needs_four_samples_per_feature() -> None:
    with pytest.raises(UserError, match="32 or more, or leave fd_infinity out"):
        fd_infinity(draws(31, 0), FAR)


def test_moments_roundtrip_through_edms_layout(tmp_path: Path) -> None:
    moments = Moments.of(draws(100, 0))
    moments.save(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        assert sorted(file) == ["mu", "n", "sigma"]
        np.savez(tmp_path / "edm.npz", mu=file["mu"], sigma=file["sigma"])  # as EDM's fid.py writes it
        np.testing.assert_allclose(file["sigma"], np.cov(draws(100, 0).numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    ours, edm = (Moments.load(tmp_path / name, DIM) for name in ("ours.npz", "edm.npz"))
    assert (ours.n, edm.n) == (100, None)
    assert torch.equal(ours.covariance, edm.covariance)
    assert frechet_distance(ours, moments) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(edm, FAR) == frechet_distance(moments, FAR)


def test_unknown_n_is_left_out_of_the_file(tmp_path: Path) -> None:
    TRUTH.save(tmp_path / "truth.npz")
    assert Moments.load(tmp_path / "truth.npz", DIM).n is None


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("message, arrays", [
    ("mu (3,) and sigma (3, 3), and the extractor gives 8 features", {"mu": np.zeros(3), "sigma": np.eye(3)}),
    ("has no mu and sigma", {"mean": np.zeros(8)}),
    ("not finite", {"mu": np.full(8, np.nan), "sigma": np.eye(8)}),
    ("no npz of plain arrays", {"mu": np.array([{}], dtype=object), "sigma": np.eye(8)}),
])  # fmt: skip
def test_bad_moments_file_is_a_user_error(message: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Moments.load(write(tmp_path / "bad.npz", **arrays), DIM)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_missing_or_other_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no reference file"):
        Moments.load(tmp_path / "none.npz", DIM)
    (tmp_path / "text.npz").write_text("mu sigma")
    with pytest.raises(UserError, match="no npz of plain arrays"):
        Moments.load(tmp_path / "text.npz", DIM)
