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
    drawn = [
        subset_mmd(*(f[random.choice(len(f), subset_size, replace=False)].double() for f in (x, y)))
        for _ in range(subsets)
    ]
    values, x_variances, y_variances = torch.tensor(drawn, dtype=torch.float64).T
    sampling = 4 * (x_variances.mean() / len(x) + y_variances.mean() / len(y))
    std = values.std(correction=0)
    return Kid(values.mean().item(), std.item(), (sampling + std.square() / subsets).sqrt().item())


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    k = a @ b.T / a.shape[1] + 1
    return k * k * k


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
