"""Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500, eq. 6):

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2)

Statistics are sums in float64, so that batches, shards and ranks merge exactly up to rounding.

Its sampling error follows from its influence function at a feature vector f drawn from the first Gaussian,

    psi(f) = 2 (m_1 - m_2).(f - m_1) + (f - m_1)^T (1 - T) (f - m_1) + const
    T      = S_2^1/2 (S_2^1/2 S_1 S_2^1/2)^-1/2 S_2^1/2

where T is the optimal transport from the first to the second: the error is sd(psi) / sqrt(n), to first order.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fgm.evaluation.moments import Gaussian

RELATIVE_RANK = 1e-12  # eigenvalues below this share of the largest are taken for zero


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


def inverse_sqrt(a: Tensor) -> Tensor:
    """The pseudo-inverse of matrix_sqrt(a)."""
    values, vectors = torch.linalg.eigh(a)
    kept = values > RELATIVE_RANK * values[-1]
    return (vectors[:, kept] * values[kept].rsqrt()) @ vectors[:, kept].T


def frechet_distance(p: Gaussian, q: Gaussian) -> float:
    """d^2, in the features' unit squared.

    Raises:
        ValueError: a covariance from fewer samples than features + 1 is singular.
    """
    known = [g.n for g in (p, q) if g.n is not None]
    if known and min(known) <= len(p.mean):
        raise ValueError(f"{min(known)} samples cannot fill a covariance of {len(p.mean)} features: use more samples")
    p_covariance, q_covariance = p.covariance, q.covariance
    root = matrix_sqrt(p_covariance)
    overlap = torch.linalg.eigvalsh(root @ q_covariance @ root).clamp_min(0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p_covariance.trace() + q_covariance.trace() - 2 * overlap
    return distance.item()


def frechet_error(features: Tensor, q: Gaussian) -> float:
    """The standard error of frechet_distance between features (n, d) and a q that is known exactly."""
    p = FeatureStatistics.of(features)
    root = matrix_sqrt(q.covariance)
    transport = root @ inverse_sqrt(root @ p.covariance @ root) @ root
    centred = features.double() - p.mean
    influence = 2 * centred @ (p.mean - q.mean) + (centred * (centred - centred @ transport)).sum(1)
    return influence.std().item() / p.n**0.5
