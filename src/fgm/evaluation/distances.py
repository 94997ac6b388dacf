"""Distances between two sets of points, (n, d) and (m, d).

    sliced W_2    ( mean over directions of W_2^2 between the projections )^1/2
    energy        2 E|x - y| - E|x - x'| - E|y - y'|                              (Szekely and Rizzo, 2013)
    MMD^2         E k(x, x') + E k(y, y') - 2 E k(x, y),  k a sum of Gaussians    (Gretton et al., 2012)

Energy and MMD^2 are unbiased, so that they are negative half of the time for equal distributions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fgm.utils.random import keyed_generator

BANDWIDTHS = (0.1, 0.3, 1.0, 3.0)
DIRECTIONS = 256


def sliced_w2(x: Tensor, y: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two equally large sets, over fixed random directions."""
    if len(x) != len(y):
        raise ValueError(f"sliced_w2 sorts and pairs: it needs equally many points, not {len(x)} and {len(y)}")
    axes = torch.nn.functional.normalize(
        torch.randn(DIRECTIONS, x.shape[1], generator=keyed_generator("sliced", index=0))
    )
    gaps = (x @ axes.T).sort(0).values - (y @ axes.T).sort(0).values
    return gaps.square().mean().sqrt().item()


def energy_distance(x: Tensor, y: Tensor) -> float:
    return -contrast(torch.cdist, x, y)


def mmd(x: Tensor, y: Tensor) -> float:
    """MMD^2 with the kernel sum_b exp(-|x - y|^2 / (2 b^2)), b in BANDWIDTHS."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.cdist(a, b).square()
        return sum((torch.exp(-squared / (2 * width**2)) for width in BANDWIDTHS), torch.zeros(()))

    return contrast(kernel, x, y)


def contrast(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), without the diagonals."""

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.double().sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).double().mean()).item()
