"""95 % confidence intervals in closed form.

They speak of the samples' noise alone: neither of a bias at finite n, nor of the seed of the training.
"""

from math import sqrt

Interval = list[float]  # low and high, as JSON has it
Z = 1.959964


def normal_interval(value: float, error: float) -> Interval:
    """value -+ Z standard errors."""
    return [value - Z * error, value + Z * error]


def wilson_interval(share: float, n: int) -> Interval:
    """Of a share of n independent trials (Wilson, 1927); it stays within [0, 1] and is not empty at its ends."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]
