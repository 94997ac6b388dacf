"""Kernel distances against their definitions, and neighbours against theirs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fgm.evaluation.intervals import normal_interval, wilson_interval
from fgm.evaluation.kernel import cmmd, cubic_kernel, kid, subset_mmds
from fgm.evaluation.neighbours import neighbours
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator


def normal(n: int, index: int, dim: int = 4) -> Tensor:
    return torch.randn(n, dim, generator=keyed_generator("kernel", index=index))


def test_kid_of_one_whole_subset_is_the_unbiased_mmd() -> None:
    x, y = normal(50, 0).double(), normal(50, 1).double() + 0.5
    k_xx, k_yy, k_xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off = 1 - torch.eye(50)
    expected = (k_xx * off).sum() / (50 * 49) + (k_yy * off).sum() / (50 * 49) - 2 * k_xy.mean()
    found = kid(x, y, subsets=3, subset_size=50)
    assert found.mean == pytest.approx(expected.item(), rel=1e-10)
    assert found.std == pytest.approx(0, abs=1e-12)
    assert torch.equal(cubic_kernel(x, y), cubic_kernel(y, x).T)


def test_kid_of_equal_distributions_is_zero_on_average_and_negative_at_times() -> None:
    values = [kid(normal(100, 2 * i), normal(100, 2 * i + 1), subsets=1, subset_size=100).mean for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5
    assert min(values) < 0


def test_the_error_of_kid_is_its_spread_over_draws() -> None:
    results = [kid(normal(300, 2 * i), normal(300, 2 * i + 1) + 0.4, 10, 150) for i in range(80)]
    spread = np.std([r.mean for r in results])
    assert 0.8 * spread < np.mean([r.error for r in results]) < 1.5 * spread


def test_kid_is_drawn_from_its_own_seed() -> None:
    x, y = normal(100, 0), normal(100, 1)
    state = torch.get_rng_state()
    assert kid(x, y, 5, 20) == kid(x, y, 5, 20) != kid(x, y, 5, 20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_kernels_of_all_pairs_give_what_each_subset_gives() -> None:
    """Twenty subsets are worth all kernels, and one of them alone is not."""
    x, y = normal(90, 0).double(), normal(70, 1).double() + 0.3
    draws = [[torch.randperm(n, generator=keyed_generator("in", index=i))[:40] for i in range(20)] for n in (90, 70)]
    in_x, in_y = (torch.stack(drawn) for drawn in draws)
    each = [subset_mmds(x, y, in_x[i : i + 1], in_y[i : i + 1]) for i in range(20)]
    torch.testing.assert_close(subset_mmds(x, y, in_x, in_y), torch.cat(each, 1), rtol=1e-10, atol=1e-12)
    whole = torch.arange(40)[None]
    torch.testing.assert_close(each[3], subset_mmds(x[in_x[3]], y[in_y[3]], whole, whole), rtol=1e-10, atol=1e-12)


def test_a_subset_larger_than_a_set_is_refused() -> None:
    with pytest.raises(UserError, match="set kid_subset_size to 30 or less"):
        kid(normal(30, 0), normal(100, 1))


def test_cmmd_is_the_direct_formula() -> None:
    """Pair by pair in float64, diagonals included; for unit vectors as CLIP gives them."""
    x, y = (torch.nn.functional.normalize(normal(n, i, 16)) for i, n in enumerate((30, 40)))

    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [np.exp(-np.square(p - q).sum() / 200) for p in a.double().numpy() for q in b.double().numpy()]
        return float(np.mean(pairs))

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-7)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_neighbours_of_equal_distributions_and_of_failures() -> None:
    x, y = normal(400, 0, 2), normal(400, 1, 2)
    same = neighbours(x, y)
    assert same.precision > 0.8 and same.recall > 0.8 and same.coverage > 0.9
    assert same.density == pytest.approx(1, abs=0.15)
    collapsed = neighbours(0.1 * x, y)
    assert collapsed.precision > 0.9 and collapsed.recall < 0.1 and collapsed.coverage < 0.3
    spread = neighbours(4 * x, y)
    assert spread.precision < 0.5 < spread.recall
    far = neighbours(x + 100, y)
    assert far.precision == far.recall == far.density == far.coverage == 0


def test_neighbours_are_the_definitions_ball_by_ball() -> None:
    x, y, k, wide = normal(20, 0, 3).double(), normal(25, 1, 3).double(), 2, 4
    reach = {
        (name, j): np.sort(torch.cdist(f, f).numpy(), 1)[:, j] for name, f in (("x", x), ("y", y)) for j in (k, wide)
    }
    d = torch.cdist(x, y).numpy()
    found = neighbours(x, y, k, wide)
    assert found.precision == np.mean([(d[i] <= reach["y", k]).any() for i in range(20)])
    assert found.recall == np.mean([(d[:, j] <= reach["x", k]).any() for j in range(25)])
    assert found.density == pytest.approx(np.mean([(d[i] < reach["y", wide]).sum() / wide for i in range(20)]))
    assert found.coverage == np.mean([d[:, j].min() < reach["y", wide][j] for j in range(25)])


def test_intervals_hold_their_level() -> None:
    rng = np.random.default_rng(0)
    hits = [lo <= 0.9 <= hi for lo, hi in (wilson_interval(rng.binomial(50, 0.9) / 50, 50) for _ in range(2000))]
    assert 0.92 < np.mean(hits) < 0.98
    assert wilson_interval(1.0, 10) == pytest.approx([0.7225, 1], abs=1e-4)
    assert normal_interval(1, 0.5) == pytest.approx([0.02, 1.98], abs=1e-3)
