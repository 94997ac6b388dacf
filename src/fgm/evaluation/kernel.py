"""Kernel distances between features x of samples (n, d) and y of real data (m, d).

KID (Binkowski et al., arXiv 1801.01401): the unbiased MMD^2 with k(a, b) = (a.b / d + 1)^3, mean over random subsets.
The subsets are drawn as torch-fidelity draws them, so that equal settings give equal values. Being unbiased it compares
across n, and is negative half of the time for equal distributions.

CMMD (Jayasumana et al., arXiv 2401.09603): 1000 times the biased MMD^2 with k(a, b) = exp(-|a - b|^2 / (2 * 10^2)), all
pairs, in float64, since unit-length features leave differences in the sixth digit alone.

Variance of KID, from its projections h_x(a) = E k(a, x) - E k(a, y) and h_y alike (Hoeffding, first order):
4 (Var h_x / n + Var h_y / m), plus what finitely many subsets leave.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fgm.utils.errors import UserError

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
ROWS, CACHED = 2048, 64  # of a kernel matrix at once


@dataclass(frozen=True)
class Kid:
    """mean and std over subsets, and the standard error of the mean."""

    mean: float
    std: float
    error: float


def kid(x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Kid:
    """Kernel distance of samples' features x and real features y.

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
    chosen = torch.from_numpy(np.array(drawn)).unbind(1)
    values, x_variances, y_variances = subset_mmds(x.double(), y.double(), *chosen)
    sampling = 4 * (x_variances.mean() / len(x) + y_variances.mean() / len(y))
    std = values.std(correction=0)
    return Kid(values.mean().item(), std.item(), (sampling + std.square() / subsets).sqrt().item())


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """In place, as fresh memory costs more than the arithmetic."""
    return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)


def subset_mmds(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Of subsets (s, size) of rows: the unbiased MMD^2 of each, and the variances of its projections, (3, s)."""
    size = in_x.shape[1]
    xx, yy = ((kernel_sums(f, f, i, i)[0] - own_kernel(f)[i]) / (size - 1) for f, i in ((x, in_x), (y, in_y)))
    xy, yx = kernel_sums(x, y, in_x, in_y)
    h_x, h_y = xx - xy / size, yy - yx / size
    return torch.stack([h_x.mean(1) + h_y.mean(1), h_x.var(1), h_y.var(1)])


def own_kernel(a: Tensor) -> Tensor:
    """k(a_i, a_i), (n,)."""
    return (a.square().sum(1) / a.shape[1] + 1).pow(3)


def kernel_sums(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor) -> tuple[Tensor, Tensor]:
    """For each subset's rows of a the sum of kernels with its rows of b, and the reverse, both (s, size); of a set with
    itself the first alone counts.

    Where subsets would draw most pairs many times, each pair's kernel is computed once, and the sums are products with
    the subsets' indicators; a pair costs about three times as much there.
    """
    if 3 * len(a) * len(b) > in_a.numel() * in_a.shape[1]:
        sums = [both_sums(a[i], b[j]) for i, j in zip(in_a, in_b, strict=True)]
        return torch.stack([over_b for over_b, _ in sums]), torch.stack([over_a for _, over_a in sums])
    member_a, member_b = indicators(in_a, a), indicators(in_b, b)
    over_b, over_a = [], torch.zeros_like(member_b)
    for rows, members in zip(a.split(ROWS), member_a.split(ROWS, 1), strict=True):
        k = cubic_kernel(rows, b)
        over_b.append(k @ member_b.T)
        over_a = over_a if a is b else over_a.addmm_(members, k)
    return torch.cat(over_b).T.gather(1, in_a), over_a.gather(1, in_b)


def both_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Over all of b (n,) and over all of a (m,), in blocks that stay in the processor's cache."""
    over_b, over_a = [], torch.zeros(len(b), dtype=b.dtype)
    for rows in a.split(CACHED):
        k = cubic_kernel(rows, b)
        over_b.append(k.sum(1))
        over_a += k.sum(0)
    return torch.cat(over_b), over_a


def indicators(rows: Tensor, a: Tensor) -> Tensor:
    """1 where a row of a is in a subset, (s, n)."""
    return torch.zeros(len(rows), len(a), dtype=a.dtype).scatter_(1, rows, 1)


def cmmd(x: Tensor, y: Tensor) -> float:
    """CMMD_SCALE times the biased MMD^2 with a Gaussian kernel."""
    x, y = x.double(), y.double()
    return CMMD_SCALE * (mean_gaussian(x, x) + mean_gaussian(y, y) - 2 * mean_gaussian(x, y))


def mean_gaussian(a: Tensor, b: Tensor) -> float:
    """The mean of exp(-|a_i - b_j|^2 / (2 CMMD_SIGMA^2)) over all pairs."""
    b_squared = b.square().sum(1)
    total = 0.0
    for rows in a.split(ROWS):
        squared = rows.square().sum(1, keepdim=True) + b_squared - 2 * rows @ b.T
        total += torch.exp(squared / (-2 * CMMD_SIGMA**2)).sum().item()
    return total / (len(a) * len(b))
