"""What a perfect generator would get: the Fréchet distance between n samples of a Gaussian and the Gaussian itself.

For covariance S with eigenvalues l_i, to first order in 1/n (the Bures metric to second order, Wishart moments):

    E d^2 = 1/n ( sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j) )

d (d + 5) / 4n for unit covariance: it grows with d^2, so that a distance in 2048 features wants tens of thousands of
samples, and values at different n do not compare. Features are no Gaussian, so read it as an order of magnitude.
"""

import torch
from torch import Tensor

SHOWN = (2_000, 5_000, 10_000, 50_000)
SAMPLES_A_FEATURE = 20  # fewer, and the bias is worth a warning


def expected_bias(covariance: Tensor, n: int) -> float:
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    pairs = torch.outer(values, values) / (values[:, None] + values).clamp_min(1e-300)
    return (values.sum() + (pairs.sum() + pairs.trace()) / 2).item() / n


def bias_table(covariance: Tensor, n: int) -> str:
    """One line: n and what a perfect generator would get there, for this n and some larger ones."""
    one = expected_bias(covariance, 1)
    return ", ".join(f"{one / k:.3g} at n = {k}" for k in (n, *(k for k in SHOWN if k > n)))


def is_small(n: int, dim: int) -> bool:
    return n < SAMPLES_A_FEATURE * dim
