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

from fgm.errors import Refusal

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
ROWS = 2048  # of a kernel matrix at once


@dataclass(frozen=True)
class Kid:
    """mean and std over subsets, and the standard error of the mean."""

    mean: float
    std: float
    error: float


def kid(x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> Kid:
    """Kernel distance of samples' features x and real features y.

    Raises:
        Refusal: a subset is larger than a set.
    """
    if subset_size > min(len(x), len(y)):
        raise Refusal(
            f"kid draws subsets of {subset_size} from {len(x)} samples and {len(y)} real ones: "
            f"set kid_subset_size to {min(len(x), len(y))} or less"
        )
    random = np.random.RandomState(seed)  # torch-fidelity's generator
    drawn = [[random.choice(len(f), subset_size, replace=False) for f in (x, y)] for _ in range(subsets)]
    chosen = torch.from_numpy(np.array(drawn)).unbind(1)
    whole = (len(x) + len(y)) ** 2 <= subsets * subset_size**2
    values, x_variances, y_variances = (mmd_by_sums if whole else mmd_by_subset)(x.double(), y.double(), *chosen)
    sampling = 4 * (x_variances.mean() / len(x) + y_variances.mean() / len(y))
    std = values.std(correction=0)
    return Kid(values.mean().item(), std.item(), (sampling + std.square() / subsets).sqrt().item())


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """In place, as fresh memory costs more than the arithmetic."""
    k = (a @ b.T).div_(a.shape[1]).add_(1)
    return k.mul_(k.square())


def mmd_by_subset(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """subset_mmd of each of the subsets (s, size), (3, s): for sets so large that few of their pairs are drawn."""
    return torch.tensor([subset_mmd(x[i], y[j]) for i, j in zip(in_x, in_y, strict=True)], dtype=torch.float64).T


def mmd_by_sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """The same with every pair's kernel computed once: sums over subsets are products with their indicators."""
    size = in_x.shape[1]
    h_x = projections(x, x, in_x, in_x, size - 1) - projections(x, y, in_x, in_y, size)
    h_y = projections(y, y, in_y, in_y, size - 1) - projections(y, x, in_y, in_x, size)
    return torch.stack([h_x.mean(1) + h_y.mean(1), h_x.var(1), h_y.var(1)])


def projections(a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor, pairs: int) -> Tensor:
    """Of each subset's rows of a, the sum of kernels with its rows of b, itself left out, over `pairs`: (s, size)."""
    member = torch.zeros(len(in_b), len(b), dtype=b.dtype).scatter_(1, in_b, 1)
    sums = torch.cat([cubic_kernel(rows, b) @ member.T for rows in a.split(ROWS)]).T.gather(1, in_a)
    if a is b:
        sums -= (a.square().sum(1) / a.shape[1] + 1).pow(3)[in_a]
    return sums / pairs


def subset_mmd(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """The unbiased MMD^2 of two sets of one size, and the variances of its projections."""
    n = len(x)
    xx, yy, xy = cubic_kernel(x, x), cubic_kernel(y, y), cubic_kernel(x, y)
    x_rows = (xx.sum(1) - xx.diagonal()) / (n - 1)
    y_rows = (yy.sum(1) - yy.diagonal()) / (n - 1)
    h_x, h_y = x_rows - xy.mean(1), y_rows - xy.mean(0)
    return (h_x.mean() + h_y.mean()).item(), h_x.var().item(), h_y.var().item()


def cmmd(x: Tensor, y: Tensor, sigma: float = CMMD_SIGMA, scale: float = CMMD_SCALE) -> float:
    """scale times the biased MMD^2 with a Gaussian kernel."""
    x, y = x.double(), y.double()
    return scale * (mean_gaussian(x, x, sigma) + mean_gaussian(y, y, sigma) - 2 * mean_gaussian(x, y, sigma))


def mean_gaussian(a: Tensor, b: Tensor, sigma: float) -> float:
    """The mean of exp(-|a_i - b_j|^2 / (2 sigma^2)) over all pairs."""
    b_squared = b.square().sum(1)
    total = 0.0
    for rows in a.split(ROWS):
        squared = rows.square().sum(1, keepdim=True) + b_squared - 2 * rows @ b.T
        total += torch.exp(squared / (-2 * sigma**2)).sum().item()
    return total / (len(a) * len(b))
