"""Fidelity and diversity apart, from balls around features that reach to the k-th neighbour of their own set.

    precision   share of samples in some real ball                       (Kynkäänniemi et al., arXiv 1904.06991), k = 3
    recall      share of real ones in some sample's ball
    density     mean number of real balls that hold a sample, over k     (Naeem et al., arXiv 2002.09797), k = 5
    coverage    share of real balls that hold some sample

Precision and recall agree with torch-fidelity's `prc`: float32, closed balls. Density and coverage agree with their
authors': open balls. All four change with n, so they compare at equal n alone. Intervals hold the balls fixed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fgm.evaluation.intervals import Interval, normal_interval, wilson_interval

ROWS = 2000  # of a matrix of distances at once
K_PRECISION, K_DENSITY = 3, 5


@dataclass(frozen=True)
class Neighbours:
    """The four values, and their intervals under the same names."""

    precision: float
    recall: float
    density: float
    coverage: float
    intervals: dict[str, Interval]


def radii(features: Tensor, *ks: int) -> list[Tensor]:
    """For each k, the distance of every feature vector to its k-th neighbour, (n,)."""
    nearest = [torch.cdist(rows, features).topk(max(ks) + 1, largest=False).values for rows in features.split(ROWS)]
    return [torch.cat(nearest)[:, k] for k in ks]  # column 0 is the vector itself


def neighbours(x: Tensor, y: Tensor, k: int = K_PRECISION, k_density: int = K_DENSITY) -> Neighbours:
    """Of samples' features x (n, d) and real features y (m, d)."""
    (x_radii,), (y_radii, y_wide) = radii(x, k), radii(y, k, k_density)
    inside, counts = [], []
    recalled, nearest = torch.zeros(len(y), dtype=torch.bool), torch.full((len(y),), torch.inf)
    for rows, reach in zip(x.split(ROWS), x_radii.split(ROWS), strict=True):
        distances = torch.cdist(rows, y)
        inside.append((distances <= y_radii).any(1))
        counts.append((distances < y_wide).sum(1))
        recalled |= (distances <= reach[:, None]).any(0)
        nearest = torch.minimum(nearest, distances.min(0).values)
    return summarised(torch.cat(inside), recalled, torch.cat(counts) / k_density, nearest < y_wide)


def summarised(inside: Tensor, recalled: Tensor, counts: Tensor, covered: Tensor) -> Neighbours:
    shares = {"precision": inside, "recall": recalled, "coverage": covered}
    values = {name: share.double().mean().item() for name, share in shares.items()}
    density = counts.double().mean().item()
    intervals = {name: wilson_interval(values[name], len(share)) for name, share in shares.items()}
    intervals["density"] = normal_interval(density, counts.double().std().item() / len(counts) ** 0.5)
    return Neighbours(**values, density=density, intervals=intervals)
