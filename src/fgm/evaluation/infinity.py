"""FD-infinity: the Fréchet distance that infinitely many samples would get (Chong and Forsyth, arXiv 1911.07023).

The bias is c / n to first order (evaluation/bias.py), so distances of growing subsets lie on a line over 1/n, and its
value at 0 is free of the samples' bias; that of the reference stays. Its error joins the line's with the samples' own.
"""

from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgm.evaluation.frechet import FeatureStatistics, frechet_distance, frechet_error
from fgm.evaluation.moments import Gaussian
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

POINTS = 15  # of the line
SAMPLES_A_FEATURE = 2  # at least, in the smallest subset: below, terms in 1/n^2 bend the line


@dataclass(frozen=True)
class Extrapolation:
    """The intercept and its standard error."""

    value: float
    error: float


def fewest(dim: int) -> int:
    """Samples that a line needs: as many again as the smallest subset."""
    return 2 * SAMPLES_A_FEATURE * dim


def subset_sizes(n: int, dim: int) -> list[int]:
    """Evenly spaced from the larger of n / 10 and twice the dimension up to n.

    Raises:
        UserError: n is too small for a line.
    """
    if n < fewest(dim):
        raise UserError(
            f"fd_infinity extrapolates from subsets and {n} samples of {dim} features are too few: "
            f"take {fewest(dim)} or more, or leave fd_infinity out of metrics"
        )
    return np.linspace(max(n // 10, SAMPLES_A_FEATURE * dim), n, POINTS).round().astype(int).tolist()


def fd_infinity(features: Tensor, reference: Gaussian) -> Extrapolation:
    """Of features (n, d) against the reference."""
    from scipy.stats import linregress  # a second to import, needed here alone

    n, dim = features.shape
    sizes = subset_sizes(n, dim)
    distances = []
    for i, size in enumerate(sizes):
        chosen = torch.randperm(n, generator=keyed_generator("fd_infinity", 0, index=i))[:size]
        distances.append(frechet_distance(FeatureStatistics.of(features[chosen]), reference))
    line: Any = linregress(1 / np.array(sizes), distances)
    return Extrapolation(float(line.intercept), hypot(line.intercept_stderr, frechet_error(features, reference)))
