"""Distances between two sets of points or feature vectors, samples x (n, d) and real data y (m, d).

    sliced W_2    ( mean over directions of W_2^2 between the projections )^1/2
    energy        2 E|x - y| - E|x - x'| - E|y - y'|                              (Szekely and Rizzo, 2013)
    MMD^2         E k(x, x') + E k(y, y') - 2 E k(x, y),  k a sum of Gaussians    (Gretton et al., 2012)
    KID           unbiased MMD^2, k(a, b) = (a.b / d + 1)^3, mean over subsets    (Binkowski et al., arXiv 1801.01401)
    CMMD          1000 biased MMD^2, k(a, b) = exp(-|a - b|^2 / (2 10^2))         (Jayasumana et al., arXiv 2401.09603)

Energy, MMD^2 and KID are unbiased, so that they are negative half of the time for equal distributions.

    precision     share of samples in some real ball                    (Kynkäänniemi et al., arXiv 1904.06991), k = 3
    recall        share of real vectors in some sample's ball
    density       mean number of real balls around a sample, over k     (Naeem et al., arXiv 2002.09797), k = 5
    coverage      share of real balls that hold some sample

A ball reaches to the k-th neighbour in its own set. All four change with n, so compare them only at equal n.

Intervals are 95 % confidence intervals. They cover the samples' noise, neither the bias at finite n nor the training's
seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

BANDWIDTHS = (0.1, 0.3, 1.0, 3.0)
DIRECTIONS = 256
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
K_PRECISION, K_DENSITY = 3, 5
KERNEL_ROWS, CACHED_ROWS, DISTANCE_ROWS = 2048, 64, 2000  # rows of a matrix at once
LEVEL, Z = 0.95, 1.959964
RESAMPLES = 1000  # determines each end of an interval to about 2 % of its width
Interval = list[float]  # low and high, as in JSON


def normal_interval(value: float, error: float) -> Interval:
    """Return value -+ Z standard errors."""
    return [value - Z * error, value + Z * error]


def wilson_interval(share: float, n: int) -> Interval:
    """Return the interval of a share of n independent trials (Wilson, 1927), which stays within [0, 1]."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def bootstrap(groups: Sequence[NDArray[np.float64]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the percentile interval of the mean over groups of each group's mean, by resampling within groups."""
    generator = np.random.default_rng(seed)
    means = [group[generator.integers(len(group), size=(resamples, len(group)))].mean(1) for group in groups]
    return np.quantile(np.mean(means, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def sliced_w2(x: Tensor, y: Tensor) -> float:
    """Return the sliced 2-Wasserstein distance of two equally large sets, over fixed random directions."""
    if len(x) != len(y):
        raise ValueError(f"sliced_w2 sorts and pairs: it needs equally many points, not {len(x)} and {len(y)}")
    axes = normalize(torch.randn(DIRECTIONS, x.shape[1], generator=keyed_generator("sliced", index=0)))
    gaps = (x @ axes.T).sort(0).values - (y @ axes.T).sort(0).values
    return gaps.square().mean().sqrt().item()


def energy_distance(x: Tensor, y: Tensor) -> float:
    return -unbiased_mmd(torch.cdist, x, y)


def mmd(x: Tensor, y: Tensor) -> float:
    """Return MMD^2 with the kernel sum_b exp(-|x - y|^2 / (2 b^2)), b in BANDWIDTHS."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.cdist(a, b).square()
        return sum((torch.exp(-squared / (2 * width**2)) for width in BANDWIDTHS), torch.zeros(()))

    return unbiased_mmd(kernel, x, y)


def unbiased_mmd(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Return E k(x, x') + E k(y, y') - 2 E k(x, y), without the diagonals."""

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.double().sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).double().mean()).item()


@dataclass(frozen=True)
class Kid:
    """Mean and standard deviation over subsets, and the standard error of the mean."""

    mean: float
    std: float
    error: float


def kid(x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Kid:
    """Return the kernel distance, over the very subsets that torch-fidelity draws.

    The variance follows from the projections h_x(a) = E k(a, x) - E k(a, y), and h_y alike (Hoeffding, first order):
    4 (Var h_x / n + Var h_y / m), plus what finitely many subsets add.

    Raises:
        UserError: a subset is larger than a set.
    """
    if subset_size > min(len(x), len(y)):
        raise UserError(
            f"kid draws subsets of {subset_size} from {len(x)} samples and {len(y)} real ones: "
            f"set kid_subset_size to {min(len(x), len(y))} or less"
        )
    random = np.random.RandomState(seed)  # torch-fidelity's generator
    drawn = [[random.choice(len(f), subset_size, replace=False) for f in (x, y)] for _ in range(subsets)]
    in_x, in_y = torch.from_numpy(np.array(drawn)).unbind(1)  # (subsets, subset_size) each
    x, y = x.double(), y.double()
    xx, yy = (
        (kernel_sums(f, f, i, i)[0] - (f.square().sum(1) / f.shape[1] + 1).pow(3)[i]) / (subset_size - 1)
        for f, i in ((x, in_x), (y, in_y))
    )
    xy, yx = kernel_sums(x, y, in_x, in_y)
    h_x, h_y = xx - xy / subset_size, yy - yx / subset_size
    values, variance = h_x.mean(1) + h_y.mean(1), 4 * (h_x.var(1).mean() / len(x) + h_y.var(1).mean() / len(y))
    std = values.std(correction=0)
    return Kid(values.mean().item(), std.item(), (variance + std.square() / subsets).sqrt().item())


def kernel_sums(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each subset, sums of the cubic kernel: of its rows of a over its rows of b, and the reverse.

    Both are (subsets, size). If `a is b`, only the first is meaningful. Where subsets would compute most pairs many
    times, each pair is computed once and summed by products with indicators of the subsets, at thrice the cost a pair.
    """
    if 3 * len(a) * len(b) > in_a.numel() * in_a.shape[1]:
        sums = [subset_sums(a[i], b[j]) for i, j in zip(in_a, in_b, strict=True)]
        return torch.stack([over_b for over_b, _ in sums]), torch.stack([over_a for _, over_a in sums])
    member_a, member_b = (
        torch.zeros(len(i), len(f), dtype=f.dtype).scatter_(1, i, 1) for f, i in ((a, in_a), (b, in_b))
    )
    over_b, over_a = [], torch.zeros_like(member_b)
    for rows, members in zip(a.split(KERNEL_ROWS), member_a.split(KERNEL_ROWS, 1), strict=True):
        k = cubic_kernel(rows, b)
        over_b.append(k @ member_b.T)
        over_a = over_a if a is b else over_a.addmm_(members, k)
    return torch.cat(over_b).T.gather(1, in_a), over_a.gather(1, in_b)


def subset_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel's sums over all of b, (n,), and over all of a, (m,), in blocks that stay in the cache."""
    over_b, over_a = [], torch.zeros(len(b), dtype=b.dtype)
    for rows in a.split(CACHED_ROWS):
        k = cubic_kernel(rows, b)
        over_b.append(k.sum(1))
        over_a += k.sum(0)
    return torch.cat(over_b), over_a


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)  # in place: fresh memory costs more than the arithmetic


def cmmd(x: Tensor, y: Tensor) -> float:
    """Return CMMD_SCALE times the biased MMD^2 in float64: features of unit length differ in the sixth digit only."""

    def mean_kernel(a: Tensor, b: Tensor) -> float:
        b_squared = b.square().sum(1)
        total = 0.0
        for rows in a.split(KERNEL_ROWS):
            squared = rows.square().sum(1, keepdim=True) + b_squared - 2 * rows @ b.T
            total += torch.exp(squared / (-2 * CMMD_SIGMA**2)).sum().item()
        return total / (len(a) * len(b))

    x, y = x.double(), y.double()
    return CMMD_SCALE * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


@dataclass(frozen=True)
class Prdc:
    """The four values, and their 95 % intervals under the same names, for fixed balls."""

    precision: float
    recall: float
    density: float
    coverage: float
    intervals: dict[str, Interval]


def prdc(x: Tensor, y: Tensor, k: int = K_PRECISION, k_density: int = K_DENSITY) -> Prdc:
    """Return precision, recall, density and coverage of samples' features x and real features y.

    Precision and recall agree with torch-fidelity's `prc` (float32, closed balls), density and coverage with their
    authors' code (open balls).
    """
    (x_radii,), (y_radii, y_wide) = radii(x, k), radii(y, k, k_density)
    inside, counts = [], []
    recalled, nearest = torch.zeros(len(y), dtype=torch.bool), torch.full((len(y),), torch.inf)
    for rows, reach in zip(x.split(DISTANCE_ROWS), x_radii.split(DISTANCE_ROWS), strict=True):
        distances = torch.cdist(rows, y)
        inside.append((distances <= y_radii).any(1))
        counts.append((distances < y_wide).sum(1))
        recalled |= (distances <= reach[:, None]).any(0)
        nearest = torch.minimum(nearest, distances.min(0).values)
    shares = {"precision": torch.cat(inside), "recall": recalled, "coverage": nearest < y_wide}
    values = {name: share.double().mean().item() for name, share in shares.items()}
    intervals = {name: wilson_interval(values[name], len(share)) for name, share in shares.items()}
    relative = (torch.cat(counts) / k_density).double()
    density = relative.mean().item()
    intervals["density"] = normal_interval(density, relative.std().item() / len(relative) ** 0.5)
    return Prdc(**values, density=density, intervals=intervals)


def radii(features: Tensor, *ks: int) -> list[Tensor]:
    """Return, for each k, the distance of every vector to its k-th neighbour, (n,)."""
    nearest = [
        torch.cdist(rows, features).topk(max(ks) + 1, largest=False).values for rows in features.split(DISTANCE_ROWS)
    ]
    return [torch.cat(nearest)[:, k] for k in ks]  # column 0 is the vector itself
