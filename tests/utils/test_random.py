"""Random streams: what is drawn depends on the key alone, and the draws look independent."""

import itertools
import math

import pytest
import torch
from scipy.stats import kstest

from fgm.utils.random import keyed_generator, sample_noise

N = 10_000


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    """The first draw of each of 10,000 consecutive indices."""
    return sample_noise(0, range(N), (1,))[:, 0]


def test_consecutive_first_draws_are_standard_normal(draws: torch.Tensor) -> None:
    """Kolmogorov-Smirnov against N(0, 1)."""
    assert kstest(draws.numpy(), "norm").pvalue > 1e-3


def test_consecutive_first_draws_are_uncorrelated(draws: torch.Tensor) -> None:
    """Neighbouring indices, in the value and in its square, correlate by less than 4 / sqrt(n)."""
    for x in (draws, draws**2):
        assert torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1].abs() < 4 / math.sqrt(N)


@pytest.mark.parametrize(("seed", "role"), [(1, "z"), (0, "label")])
def test_seeds_and_roles_are_uncorrelated(draws: torch.Tensor, seed: int, role: str) -> None:
    """Another seed or role draws other noise at the same indices."""
    elsewhere = sample_noise(seed, range(N), (1,), role)[:, 0]
    assert torch.corrcoef(torch.stack([draws, elsewhere]))[0, 1].abs() < 4 / math.sqrt(N)


@pytest.mark.parametrize("key", [(0, "z"), (3, 1, "t"), ("label",)])
def test_distinct_indices_draw_distinct_noise(key: tuple[int | str, ...]) -> None:
    """No two of 1,000 consecutive indices agree, also where the seed's low 32 bits wrap around to zero."""
    to_wrap = 2**32 - keyed_generator(*key, index=0).initial_seed() % 2**32
    for start in (0, to_wrap - 500):
        rows = [torch.randn(4, generator=keyed_generator(*key, index=i)) for i in range(start, start + 1000)]
        assert len(torch.stack(rows).unique(dim=0)) == 1000


def test_equal_keys_draw_equal_noise() -> None:
    """A stream is a function: the same key and index draw the same, and the grouping of the key counts."""
    first, again, other = (torch.randn(9, generator=keyed_generator(*k, index=5)) for k in ((1, 23), (1, 23), (12, 3)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
@pytest.mark.parametrize("cuts", [(0, 23), (0, 1, 2, 23), (0, 8, 8, 16, 23)])
def test_any_split_of_the_indices_draws_the_same(shape: tuple[int, ...], cuts: tuple[int, ...]) -> None:
    """Batches of any size, empty ones included, concatenate to the whole, bit for bit."""
    parts = [sample_noise(4, range(a, b), shape) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(parts), sample_noise(4, range(23), shape))


@pytest.mark.parametrize("world", [2, 5])
def test_any_number_of_devices_draws_the_same(world: int) -> None:
    """Rank r of w drawing indices r, r + w, ... fills in the rows of the whole, bit for bit."""
    whole = sample_noise(4, range(23), (3, 4))
    assert all(torch.equal(sample_noise(4, range(r, 23, world), (3, 4)), whole[r::world]) for r in range(world))


def test_the_global_generator_is_left_alone() -> None:
    """Drawing neither reads nor moves torch's global state."""
    torch.manual_seed(0)
    before, noise = torch.get_rng_state(), sample_noise(0, range(3), (2,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(sample_noise(0, range(3), (2,)), noise)
