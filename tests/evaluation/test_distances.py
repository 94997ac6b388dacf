"""Distances equal closed forms, their definitions and independent implementations; each failure moves its metric."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from fgm.data.points import Checkerboard, Ring
from fgm.evaluation import measure
from fgm.evaluation.distances import (
    cmmd,
    cubic_kernel,
    energy_distance,
    kernel_sums,
    kid,
    mmd,
    normal_interval,
    prdc,
    sliced_w2,
    wilson_interval,
)
from fgm.evaluation.point_metrics import PointMetrics, mode_shares
from fgm.flow.analytic import ring
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator


def normal(n: int, d: int, index: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=keyed_generator("test", index=index), dtype=torch.float64)


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


def test_point_metrics_show_each_failure() -> None:
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


def test_off_support_is_the_share_of_points_outside_the_dark_squares() -> None:
    data = Checkerboard()
    x = data.points(1000, keyed_generator("test", index=9))
    moved = torch.cat([x[:300] + torch.tensor([1.0, 0.0]), x[300:]])
    assert {m.metric: m.value for m in measure(PointMetrics(data), moved)}["off_support"] == pytest.approx(0.3)


def mode_of(x: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, ring().means).argmin(1)


def sharpened(x: torch.Tensor) -> torch.Tensor:
    """Half the width of every mode."""
    centres = ring().means[mode_of(x)]
    return centres + (x - centres) / 2


def test_mode_shares_sum_to_one() -> None:
    assert mode_shares(ring().sample(1000, keyed_generator("test", index=0)), ring()).sum() == pytest.approx(1)


def features(n: int, index: int, dim: int = 4) -> Tensor:
    return torch.randn(n, dim, generator=keyed_generator("kernel", index=index))


def test_kid_of_one_full_subset_is_the_unbiased_mmd() -> None:
    x, y = features(50, 0).double(), features(50, 1).double() + 0.5
    k_xx, k_yy, k_xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off = 1 - torch.eye(50)
    expected = (k_xx * off).sum() / (50 * 49) + (k_yy * off).sum() / (50 * 49) - 2 * k_xy.mean()
    result = kid(x, y, subsets=3, subset_size=50)
    assert result.mean == pytest.approx(expected.item(), rel=1e-10)
    assert result.std == pytest.approx(0, abs=1e-12)
    assert torch.equal(cubic_kernel(x, y), cubic_kernel(y, x).T)


def test_kid_of_equal_distributions_is_zero_on_average_and_negative_at_times() -> None:
    values = [kid(features(100, 2 * i), features(100, 2 * i + 1), subsets=1, subset_size=100).mean for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5
    assert min(values) < 0


def test_kid_error_is_the_spread_over_draws() -> None:
    results = [kid(features(300, 2 * i), features(300, 2 * i + 1) + 0.4, 10, 150) for i in range(80)]
    spread = np.std([r.mean for r in results])
    assert 0.8 * spread < np.mean([r.error for r in results]) < 1.5 * spread


def test_kid_subsets_depend_on_their_seed_only() -> None:
    x, y = features(100, 0), features(100, 1)
    state = torch.get_rng_state()
    assert kid(x, y, 5, 20) == kid(x, y, 5, 20) != kid(x, y, 5, 20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_kernel_sums_of_all_pairs_equal_those_of_each_subset() -> None:
    """Twenty subsets take the path over all pairs, and one subset the other path."""
    x, y = features(90, 0).double(), features(70, 1).double() + 0.3
    draws = [[torch.randperm(n, generator=keyed_generator("in", index=i))[:40] for i in range(20)] for n in (90, 70)]
    in_x, in_y = (torch.stack(drawn) for drawn in draws)
    each = [kernel_sums(x, y, in_x[i : i + 1], in_y[i : i + 1]) for i in range(20)]
    for together, apart in zip(kernel_sums(x, y, in_x, in_y), zip(*each, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-10, atol=1e-12)
    assert torch.allclose(each[3][0], cubic_kernel(x[in_x[3]], y[in_y[3]]).sum(1), rtol=1e-10)


def test_kid_subset_larger_than_a_set_is_a_user_error() -> None:
    with pytest.raises(UserError, match="set kid_subset_size to 30 or less"):
        kid(features(30, 0), features(100, 1))


def test_cmmd_is_the_direct_formula() -> None:
    """Pair by pair in float64, diagonals included; for unit vectors as CLIP gives them."""
    x, y = (torch.nn.functional.normalize(features(n, i, 16)) for i, n in enumerate((30, 40)))

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [np.exp(-np.square(p - q).sum() / 200) for p in a.double().numpy() for q in b.double().numpy()]
        return float(np.mean(pairs))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-7)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_prdc_of_equal_distributions_and_of_failures() -> None:
    x, y = features(400, 0, 2), features(400, 1, 2)
    same = prdc(x, y)
    assert same.precision > 0.8 and same.recall > 0.8 and same.coverage > 0.9
    assert same.density == pytest.approx(1, abs=0.15)
    collapsed = prdc(0.1 * x, y)
    assert collapsed.precision > 0.9 and collapsed.recall < 0.1 and collapsed.coverage < 0.3
    spread = prdc(4 * x, y)
    assert spread.precision < 0.5 < spread.recall
    far = prdc(x + 100, y)
    assert far.precision == far.recall == far.density == far.coverage == 0


def test_prdc_equals_its_definition_ball_by_ball() -> None:
    x, y, k, wide = features(20, 0, 3).double(), features(25, 1, 3).double(), 2, 4
    reach = {
        (name, j): np.sort(torch.cdist(f, f).numpy(), 1)[:, j] for name, f in (("x", x), ("y", y)) for j in (k, wide)
    }
    d = torch.cdist(x, y).numpy()
    result = prdc(x, y, k, wide)
    assert result.precision == np.mean([(d[i] <= reach["y", k]).any() for i in range(20)])
    assert result.recall == np.mean([(d[:, j] <= reach["x", k]).any() for j in range(25)])
    assert result.density == pytest.approx(np.mean([(d[i] < reach["y", wide]).sum() / wide for i in range(20)]))
    assert result.coverage == np.mean([d[:, j].min() < reach["y", wide][j] for j in range(25)])


def test_intervals_cover_at_their_level() -> None:
    rng = np.random.default_rng(0)
    hits = [lo <= 0.9 <= hi for lo, hi in (wilson_interval(rng.binomial(50, 0.9) / 50, 50) for _ in range(2000))]
    assert 0.92 < np.mean(hits) < 0.98
    assert wilson_interval(1.0, 10) == pytest.approx([0.7225, 1], abs=1e-4)
    assert normal_interval(1, 0.5) == pytest.approx([0.02, 1.98], abs=1e-3)
