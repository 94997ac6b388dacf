"""Fréchet distance between Gaussians fitted to features (Heusel et al., arXiv 1706.08500, eq. 6):

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2)

Sampling error, from the influence function at a feature vector f drawn from the first Gaussian; no resampling, since
each of a thousand resamples would need a matrix square root of 2048 x 2048:

    psi(f) = 2 (m_1 - m_2).(f - m_1) + (f - m_1)^T (1 - T) (f - m_1) + const
    T      = S_2^1/2 (S_2^1/2 S_1 S_2^1/2)^-1/2 S_2^1/2          optimal transport from the first to the second
    error  = sd(psi) / sqrt(n)                                   to first order

Bias: the expected distance between n samples of a Gaussian and the Gaussian itself, for eigenvalues l_i of S, to first
order in 1/n (Bures metric to second order, Wishart moments):

    E d^2 = 1/n ( sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j) )        d (d + 5) / 4n if S = 1

It grows with d^2: a distance in 2048 features needs tens of thousands of samples, and values at different n do not
compare. Features are not Gaussian, so it is an order of magnitude. FD-infinity (Chong and Forsyth, arXiv 1911.07023)
extrapolates distances of growing subsets over 1/n to 0, which removes the samples' bias but not the reference's.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import hypot, log2
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgm.utils.errors import UserError
from fgm.utils.files import damage_of
from fgm.utils.random import keyed_generator

RELATIVE_RANK = 1e-12  # eigenvalues below this share of the largest count as zero
SAMPLES_PER_FEATURE = 20  # with fewer the bias is worth a warning
TYPICAL_N = 50_000  # of a reference that does not state it
LINE_POINTS = 15  # subsets that FD-infinity's line is fitted to
LINE_SAMPLES_PER_FEATURE = 2  # at least, in the smallest subset: below, terms in 1/n^2 bend the line


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of features, float64, and their number, None if unknown."""

    mean: Tensor
    covariance: Tensor
    n: int | None

    @classmethod
    def of(cls, *batches: Tensor) -> Self:
        """Return the moments of features (n, d), in one or several batches."""
        return cls.of_batches(batches)

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor]) -> Self:
        n, total, outer = 0, torch.zeros(()), torch.zeros(())
        for features in (batch.double() for batch in batches):
            n, total, outer = n + len(features), total + features.sum(0), outer + features.T @ features
        return cls.of_sums(n, total, outer)

    @classmethod
    def of_sums(cls, n: int, total: Tensor, outer: Tensor) -> Self:
        """Return the moments of n features whose sum is total (d,) and whose outer products sum to outer (d, d)."""
        mean = total / n
        return cls(mean, (outer - n * torch.outer(mean, mean)) / (n - 1), n)

    def save(self, path: Path | str) -> None:
        """Write an npz in EDM's layout, mu (d,) and sigma (d, d), with n added."""
        arrays: dict[str, Any] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}
        arrays |= {} if self.n is None else {"n": np.array(self.n)}
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path | str, dim: int) -> Self:
        """Read moments of dim features from an npz in EDM's layout.

        Raises:
            UserError: no such file, another layout or dimension, no mean and covariance, or no number of images.
        """
        if not Path(path).is_file():
            raise UserError(
                f"there is no reference file {path}: give one in EDM's layout (npz with mu and sigma), or data"
            )
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {key: file[key] for key in ("mu", "sigma", "n") if key in file}
        except (ValueError, OSError, EOFError, BadZipFile, TypeError, AttributeError, zlib.error) as error:
            what = damage_of(Path(path), error)
            raise UserError(f"{path} is no npz of plain arrays ({what}): give a file in EDM's layout") from error
        if not {"mu", "sigma"} <= arrays.keys():
            raise UserError(f"{path} has no mu and sigma: give a reference file in EDM's layout")
        mu, sigma = arrays["mu"], arrays["sigma"]
        if mu.shape != (dim,) or sigma.shape != (dim, dim):
            raise UserError(
                f"{path} holds mu {mu.shape} and sigma {sigma.shape}, and the extractor gives {dim} features: "
                "take the reference that was made with this extractor"
            )
        n = arrays.get("n", np.array(TYPICAL_N))
        if n.size != 1 or n.dtype.kind not in "iuf" or not 2 <= n.item() < 1e12 or n.item() % 1:
            raise UserError(f"{path} holds n = {n}, not a number of images: make the reference again")
        if defect := defect_of(mu, sigma, int(n.item())):
            raise UserError(f"{path} {defect}: make the reference again")
        mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in (mu, sigma))
        return cls(mean, covariance, int(n.item()) if "n" in arrays else None)


def defect_of(mu: NDArray[Any], sigma: NDArray[Any], n: int) -> str:
    """Say why mu (d,) and sigma (d, d) cannot be moments of n float32 features; "" if they can be.

    Float32 features, summed pairwise, have second moments E f_i f_j with errors up to u (2 + log2 n) times v_i v_j, by
    Cauchy and Schwarz, with v_i^2 = E f_i^2 and u = 2^-24. So large a difference between sigma and its transpose is
    allowed. By Weyl, eigenvalues lie at most the error's Frobenius norm below 0, u (2 + log2 n) |v|^2.
    """
    if not all(array.dtype.kind in "fiu" for array in (mu, sigma)):
        return f"holds {mu.dtype} and {sigma.dtype}, not real numbers"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "holds values that are not finite"
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if (sigma.diagonal() < 0).any():
        return f"holds no covariance (sigma has a negative variance, {sigma.diagonal().min():.3g})"
    v, error = np.sqrt(sigma.diagonal() + mu**2), 2.0**-24 * (2 + log2(n))
    if (np.abs(sigma - sigma.T) > error * np.outer(v, v)).any():
        return f"holds no covariance (sigma is not symmetric, by up to {np.abs(sigma - sigma.T).max():.3g})"
    lowest = np.linalg.eigvalsh(sigma)[0]
    return "" if lowest >= -error * (v @ v) else f"holds no covariance (sigma has a negative eigenvalue, {lowest:.3g})"


def frechet_distance(p: Moments, q: Moments) -> float:
    """Return d^2, in the square of the features' unit.

    Raises:
        ValueError: a covariance is singular, because it was estimated from no more samples than features.
    """
    known = [moments.n for moments in (p, q) if moments.n is not None]
    if known and min(known) <= len(p.mean):
        raise ValueError(f"{min(known)} samples cannot fill a covariance of {len(p.mean)} features: use more samples")
    root = matrix_sqrt(p.covariance)
    overlap = torch.linalg.eigvalsh(root @ q.covariance @ root).clamp_min(0).sqrt().sum()
    distance = (p.mean - q.mean).square().sum() + p.covariance.trace() + q.covariance.trace() - 2 * overlap
    return distance.item()


def frechet_error(features: Tensor, q: Moments) -> float:
    """Return the standard error of frechet_distance between features (n, d) and a q that is known exactly."""
    p, root = Moments.of(features), matrix_sqrt(q.covariance)
    values, vectors = torch.linalg.eigh(root @ p.covariance @ root)
    positive = values > RELATIVE_RANK * values[-1]
    inverse_root = (vectors[:, positive] * values[positive].rsqrt()) @ vectors[:, positive].T
    transport = root @ inverse_root @ root
    centred = features.double() - p.mean
    influence = 2 * centred @ (p.mean - q.mean) + (centred * (centred - centred @ transport)).sum(1)
    return influence.std().item() / len(features) ** 0.5


def matrix_sqrt(a: Tensor) -> Tensor:
    """Return the square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def expected_bias(covariance: Tensor, n: int) -> float:
    """Return the expected distance of n samples of a Gaussian from the Gaussian itself."""
    values = torch.linalg.eigvalsh(covariance).clamp_min(0)
    pairs = torch.outer(values, values) / (values[:, None] + values).clamp_min(1e-300)
    return (values.sum() + (pairs.sum() + pairs.trace()) / 2).item() / n


def bias_warning(covariance: Tensor, n: int) -> str | None:
    """Return what a perfect generator would score at n samples and at larger numbers, or None if n is large enough."""
    if n >= SAMPLES_PER_FEATURE * len(covariance):
        return None
    sizes = (n, *(size for size in (2_000, 5_000, 10_000, 50_000) if size > n))
    of_one = expected_bias(covariance, 1)
    biases = ", ".join(f"{of_one / size:.3g} at n = {size}" for size in sizes)
    return (
        f"fd of {n} samples in {len(covariance)} features: a perfect generator would show about {biases}; "
        "compare only at equal n, or read kid"
    )


@dataclass(frozen=True)
class Extrapolation:
    """The intercept of FD-infinity's line and its standard error."""

    value: float
    error: float


def min_samples_for_line(dim: int) -> int:
    """Return the number of samples that fd_infinity needs, twice the smallest subset."""
    return 2 * LINE_SAMPLES_PER_FEATURE * dim


def fd_infinity(features: Tensor, reference: Moments) -> Extrapolation:
    """Extrapolate the distance of features (n, d) from the reference to infinitely many samples.

    Subsets grow evenly from the larger of n / 10 and twice the dimension to n. The error combines the line's with the
    samples' own.

    Raises:
        UserError: n is too small for a line.
    """
    from scipy.stats import linregress  # a second to import

    n, dim = features.shape
    if n < min_samples_for_line(dim):
        raise UserError(
            f"fd_infinity extrapolates from subsets and {n} samples of {dim} features are too few: "
            f"take {min_samples_for_line(dim)} or more, or leave fd_infinity out of metrics"
        )
    smallest = max(n // 10, LINE_SAMPLES_PER_FEATURE * dim)
    sizes = np.linspace(smallest, n, LINE_POINTS).round().astype(int).tolist()
    distances = []
    for i, size in enumerate(sizes):
        chosen = torch.randperm(n, generator=keyed_generator("fd_infinity", 0, index=i))[:size]
        distances.append(frechet_distance(Moments.of(features[chosen]), reference))
    line: Any = linregress(1 / np.array(sizes), distances)
    return Extrapolation(float(line.intercept), hypot(line.intercept_stderr, frechet_error(features, reference)))
