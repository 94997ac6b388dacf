"""The metric suite for points. Each metric is blind to a failure that another one shows:

    sliced_w2                 over the first N_SORTED samples
    energy, mmd               over the first N_PAIRS samples, because they cost N^2
    mode_kl                   KL(shares of the modes among samples || weights): dropped modes
    mode_share_error          max_k |share_k / w_k - 1|
    nll_gap                   E[-log p(x)] - entropy of p: positive for points where p is small, negative for collapse
    off_support               share of samples where p is zero

mode_* and nll_gap need a data set with a known mixture, off_support one whose density is zero somewhere.
"""

from typing import Any

import torch
from torch import Tensor

from fgm.data.points import Points
from fgm.evaluation import Features
from fgm.evaluation.distances import energy_distance, mmd, sliced_w2
from fgm.flow.analytic import GaussianMixture
from fgm.flow.paths import RectifiedPath
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.records import Measurement
from fgm.utils.validation import validated

FLOOR_PAIRS = 5
N_SORTED = 10_000
N_PAIRS = 2_000


@validated
class PointMetrics:
    """Compares samples (n, d) with fresh draws of data.

    Args:
        data: the true distribution.
    """

    def __init__(self, data: Points) -> None:
        if len(data.shape) != 1:
            raise UserError(
                f"this evaluator measures points, and {type(data).__name__} holds images: choose another one"
            )
        self.data = data
        self.mixture = data.mixture

    def real(self, n: int, index: int) -> Tensor:
        return self.data.points(n, keyed_generator("point panel", index=index))

    def identity(self) -> dict[str, Any]:
        return {}

    def features(self, x_0: Tensor, labels: Tensor | None = None) -> Features:
        if x_0.shape[1:] != self.data.shape:
            raise UserError(f"points are measured at {self.data.shape}, and these samples are {tuple(x_0.shape[1:])}")
        return {"x_0": x_0.float()}

    def compute(self, features: Features) -> list[Measurement]:
        x = features["x_0"]
        return self.distances(x, self.real(N_SORTED, 0)) + self.modes(x) + self.off_support(x)

    def distances(self, x: Tensor, y: Tensor) -> list[Measurement]:
        x, y = x[: len(y)], y[: len(x)]
        pairs = x[:N_PAIRS], y[:N_PAIRS]
        values = [
            ("sliced_w2", sliced_w2(x, y), len(x)),
            ("energy", energy_distance(*pairs), len(pairs[0])),
            ("mmd", mmd(*pairs), len(pairs[0])),
        ]
        return [Measurement(metric, value, n, f"against {n} fresh points") for metric, value, n in values]

    def modes(self, x: Tensor) -> list[Measurement]:
        if self.mixture is None:
            return []
        share, weights = mode_shares(x, self.mixture), self.mixture.weights
        entropy = negative_log_likelihood(self.real(100_000, 1), self.mixture)
        values = {
            "mode_kl": torch.xlogy(share, share / weights).sum().item(),
            "mode_share_error": (share / weights - 1).abs().max().item(),
            "nll_gap": negative_log_likelihood(x, self.mixture) - entropy,
        }
        return [Measurement(metric, value, len(x), "exact mixture") for metric, value in values.items()]

    def off_support(self, x: Tensor) -> list[Measurement]:
        supported = self.data.supports(x)
        if supported is None:
            return []
        return [Measurement("off_support", 1 - supported.double().mean().item(), len(x), "exact support")]

    def reference_values(self) -> list[Measurement]:
        """Return the mean over FLOOR_PAIRS pairs of fresh real samples: what a perfect generator would get."""
        sets = [self.real(N_SORTED, index) for index in range(2, 2 + 2 * FLOOR_PAIRS)]
        fresh = [self.distances(x, y) for x, y in zip(sets[::2], sets[1::2], strict=True)]
        return [
            Measurement(m[0].metric, sum(each.value for each in m) / FLOOR_PAIRS, m[0].n, f"floor: {m[0].protocol}")
            for m in zip(*fresh, strict=True)
        ]


def mode_shares(x: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return the share of points nearest to each mean, (k,)."""
    nearest = torch.cdist(x, mixture.means).argmin(1)
    return nearest.bincount(minlength=len(mixture.weights)) / len(x)


def negative_log_likelihood(x: Tensor, mixture: GaussianMixture) -> float:
    """Return E[-log p(x)] in nats."""
    return -mixture.log_density(x.double(), torch.zeros((), dtype=torch.float64), RectifiedPath()).mean().item()
