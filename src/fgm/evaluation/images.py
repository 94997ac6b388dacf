"""Metrics for digits and for clothes: all that can be said of samples in a small classifier's features, and of pixels.

Reference: the training split, as CIFAR-10's protocols have it. Floor: the held-out images. Ceilings: noise, and
held-out images blurred by a 3 x 3 box. Samples are quantised to uint8 first, as a PNG would be.
"""

from fgm.data.images import Digits
from fgm.data.published import FashionMNIST
from fgm.evaluation.feature_metrics import DISTANCES, FeatureMetrics
from fgm.evaluation.features.small import SmallClassifier
from fgm.evaluation.metrics import SYMPTOMS
from fgm.utils.validation import validated

METRICS = (*DISTANCES, "accuracy", *SYMPTOMS)


@validated
class DigitMetrics(FeatureMetrics):
    """Distances, accuracy and signs of failure of samples (n, 1, 8, 8)."""

    noun = "scans"

    def __init__(self) -> None:
        super().__init__(SmallClassifier(), Digits(), metrics=METRICS, kid_subsets=10, batch=None)


@validated
class FashionMetrics(FeatureMetrics):
    """Distances, accuracy and signs of failure of samples (n, 1, 28, 28).

    Args:
        data: Fashion-MNIST; without it, from where Debian or the cache has it.
    """

    def __init__(self, data: FashionMNIST | None = None) -> None:
        super().__init__(
            SmallClassifier("fashion"), data or FashionMNIST(), metrics=METRICS, kid_subsets=10, batch=1000
        )
