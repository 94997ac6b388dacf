"""Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500, eq. 6):

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2)

Statistics are sums in float64, so that batches, shards and ranks merge exactly up to rounding.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """count n, sum (d,) and sum of outer products (d, d) of features."""

    n: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """From features (n, d)."""
        features = features.double()
        return cls(len(features), features.sum(0), features.T @ features)

    def __add__(self, other: Self) -> "FeatureStatistics":
        return FeatureStatistics(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (d, d)."""
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)


def matrix_sqrt(a: Tensor) -> Tensor:
    """The square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(p: FeatureStatistics, q: FeatureStatistics) -> float:
    """d^2, in the features' unit squared.

    Raises:
        ValueError: a covariance from fewer samples than features + 1 is singular.
    """
    if min(p.n, q.n) <= len(p.mean):
        raise ValueError(
            f"{min(p.n, q.n)} samples cannot fill a covariance of {len(p.mean)} features: use more samples"
        )
    root = matrix_sqrt(p.covariance)
    overlap = torch.linalg.eigvalsh(root @ q.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * overlap
    return distance.item()
