"""The distances as torchmetrics.Metrics: update with features (n, d) of samples, in batches and on any number of ranks.

Each compares with a fixed reference. States are float64 sums (FrechetDistance) or the features themselves, and are
synced by torchmetrics; values are those of the pure functions of frechet and distances. `dist_reduce_fx="cat"` joins
features rank by rank, so that metrics over random subsets (KernelDistance, FDInfinity) depend on how samples are dealt.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fgm.evaluation.distances import K_DENSITY, K_PRECISION, cmmd, kid, prdc
from fgm.evaluation.frechet import Moments, fd_infinity, frechet_distance


class FrechetDistance(Metric):
    """Fréchet distance from fixed moments; its states are sums, independent of the number of samples.

    Args:
        reference: of real features, for instance Moments.of(features) or Moments.load(path, dim).
        kwargs: torchmetrics.Metric's.
    """

    is_differentiable, higher_is_better, full_state_update = False, False, False
    n: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, reference: Moments, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference, d = reference, len(reference.mean)
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(d, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(d, d, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        features = features.double()
        self.n += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def moments(self) -> Moments:
        """Return the moments of all features so far, on the CPU."""
        return Moments.of_sums(int(self.n), self.total.cpu(), self.outer.cpu())

    def compute(self) -> Tensor:
        return torch.tensor(frechet_distance(self.moments(), self.reference), dtype=torch.float64)


class FeatureDistance(Metric):
    """Collects features (n, d); subclasses compute a distance from them.

    Args:
        reference: real features (m, d); moments of them for FDInfinity.
        kwargs: torchmetrics.Metric's.
    """

    is_differentiable, higher_is_better, full_state_update = False, False, False
    collected: list[Tensor]

    def __init__(self, reference: Tensor | Moments, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference: Any = reference.cpu() if isinstance(reference, Tensor) else reference
        self.add_state("collected", [], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        self.collected.append(features.detach())

    def features(self) -> Tensor:
        """Return all features so far, (n, d), on the CPU."""
        return dim_zero_cat(self.collected).cpu()


class FDInfinity(FeatureDistance):
    """Fréchet distance from the moments of real features, extrapolated to infinitely many samples."""

    def compute(self) -> Tensor:
        return torch.tensor(fd_infinity(self.features(), self.reference).value, dtype=torch.float64)


class KernelDistance(FeatureDistance):
    """KID: {kid_mean, kid_std} over random subsets, of a number and a size."""

    def __init__(self, reference: Tensor, subsets: int = 100, subset_size: int = 1000, **kwargs: Any) -> None:
        super().__init__(reference, **kwargs)
        self.subsets, self.subset_size = subsets, subset_size

    def compute(self) -> dict[str, Tensor]:
        k = kid(self.features(), self.reference, self.subsets, self.subset_size)
        return {name: torch.tensor(v, dtype=torch.float64) for name, v in (("kid_mean", k.mean), ("kid_std", k.std))}


class CMMD(FeatureDistance):
    """CMMD of CLIP embeddings of unit length."""

    def compute(self) -> Tensor:
        return torch.tensor(cmmd(self.features(), self.reference), dtype=torch.float64)


class PRDC(FeatureDistance):
    """{precision, recall, density, coverage}. Pass as many features as the reference has: the values depend on both.

    Balls reach to the k-th neighbour for precision and recall, to the k_density-th for density and coverage.
    """

    higher_is_better = True

    def __init__(self, reference: Tensor, k: int = K_PRECISION, k_density: int = K_DENSITY, **kwargs: Any) -> None:
        super().__init__(reference, **kwargs)
        self.k, self.k_density = k, k_density

    def compute(self) -> dict[str, Tensor]:
        values = prdc(self.features(), self.reference, self.k, self.k_density)
        names = ("precision", "recall", "density", "coverage")
        return {name: torch.tensor(getattr(values, name), dtype=torch.float64) for name in names}
