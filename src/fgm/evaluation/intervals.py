"""95 % confidence intervals. They cover the samples' noise, neither the bias at finite n nor the training's seed."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Interval = list[float]  # low and high, as in JSON
Array = NDArray[np.float64]
LEVEL, Z = 0.95, 1.959964
RESAMPLES = 1000  # determines each end of an interval to about 2 % of its width


def normal_interval(value: float, error: float) -> Interval:
    """Return value -+ Z standard errors."""
    return [value - Z * error, value + Z * error]


def wilson_interval(share: float, n: int) -> Interval:
    """Return the interval of a share of n independent trials (Wilson, 1927), which stays within [0, 1]."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def bootstrap(groups: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the percentile interval of the mean over groups of each group's mean, by resampling within groups."""
    generator = np.random.default_rng(seed)
    means = [group[generator.integers(len(group), size=(resamples, len(group)))].mean(1) for group in groups]
    return np.quantile(np.mean(means, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
