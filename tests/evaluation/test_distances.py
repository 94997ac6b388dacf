"""Distances of points and of Gaussians are closed forms and independent implementations; their suite sees failures."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from fgm.data.points import Ring
from fgm.evaluation import measure
from fgm.evaluation.distances import energy_distance, mmd, sliced_w2
from fgm.evaluation.frechet import FeatureStatistics, frechet_distance
from fgm.evaluation.point_metrics import PointMetrics, mode_shares
from fgm.flow.analytic import ring
from fgm.utils.random import keyed_generator


def normal(n: int, d: int, index: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=keyed_generator("test", index=index), dtype=torch.float64)


def test_frechet_distance_of_shifted_and_scaled_sets_is_the_closed_form() -> None:
    """For y = 2 x + 1, whatever x: |mean x + 1|^2 + tr S, since the roots commute."""
    x = normal(500, 6)
    p, q = FeatureStatistics.of(x), FeatureStatistics.of(2 * x + 1)
    expected = (p.mean + 1).square().sum() + p.covariance.trace()
    assert frechet_distance(p, q) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(p, p) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_equals_the_formula_by_scipy() -> None:
    x, y = normal(400, 5), normal(300, 5, 1) @ normal(5, 5, 2)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * root)
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)) == pytest.approx(expected, rel=1e-9)


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    x = normal(100, 4)
    parts, whole = FeatureStatistics.of(x[:37]) + FeatureStatistics.of(x[37:]), FeatureStatistics.of(x)
    assert parts.n == whole.n
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-12, atol=1e-12)


def test_too_few_samples_for_a_covariance_are_refused() -> None:
    with pytest.raises(ValueError, match="use more samples"):
        frechet_distance(FeatureStatistics.of(normal(5, 5)), FeatureStatistics.of(normal(100, 5)))


def test_sliced_w2_of_a_translation_is_its_length_over_root_d() -> None:
    x = normal(300, 2).float()
    assert sliced_w2(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5 / math.sqrt(2), rel=0.05)
    assert sliced_w2(x, x.flip(0)) == 0


def test_energy_distance_equals_scipys_in_one_dimension() -> None:
    """scipy gives the square root of the biased statistic; the difference of the two is the diagonals' share."""
    x, y = normal(2000, 1), normal(2000, 1, 1) + 1
    assert energy_distance(x, y) == pytest.approx(
        scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2, abs=2e-3
    )


def test_mmd_is_unbiased_and_sees_a_shift() -> None:
    same = [mmd(normal(200, 2, 2 * i), normal(200, 2, 2 * i + 1)) for i in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(20)
    assert mmd(normal(200, 2), normal(200, 2, 1) + 1) > 10 * np.std(same)


def test_the_point_suite_sees_each_failure() -> None:
    data = Ring()
    suite, x = PointMetrics(data), data.points(20_000, keyed_generator("test", index=9))
    good = {m.metric: m.value for m in measure(suite, x)}
    dropped = {m.metric: m.value for m in measure(suite, x[mode_of(x) != 0])}
    narrow = {m.metric: m.value for m in measure(suite, sharpened(x))}
    assert dropped["mode_kl"] == pytest.approx(math.log(8 / 7), abs=0.01) and good["mode_kl"] < 0.001
    assert dropped["mode_share_error"] == 1
    assert narrow["nll_gap"] < -0.5 < abs(good["nll_gap"]) + 0.1
    floor = {m.metric: m.value for m in suite.reference_values()}
    assert good["sliced_w2"] < 2 * floor["sliced_w2"] < dropped["sliced_w2"]


def mode_of(x: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, ring().means).argmin(1)


def sharpened(x: torch.Tensor) -> torch.Tensor:
    """Half the width of every mode."""
    centres = ring().means[mode_of(x)]
    return centres + (x - centres) / 2


def test_mode_shares_sum_to_one() -> None:
    assert mode_shares(ring().sample(1000, keyed_generator("test", index=0)), ring()).sum() == pytest.approx(1)
