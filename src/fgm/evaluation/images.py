"""The panel for digits: all that can be said of samples in a small classifier's features, and of their pixels.

Reference: the training split, as CIFAR-10's protocols have it. Floor: the held-out scans. Ceilings: noise, and held-out
scans blurred by a 3 x 3 box. Samples are quantised to uint8 first, as a PNG would be.
"""

from fgm.data.digits import Digits
from fgm.evaluation.features.small import SmallClassifier
from fgm.evaluation.metrics import SYMPTOMS
from fgm.evaluation.panel import DISTANCES, FeaturePanel


class DigitPanel(FeaturePanel):
    """Distances, accuracy and signs of failure of samples (n, 1, 8, 8)."""

    noun = "scans"

    def __init__(self) -> None:
        metrics = (*DISTANCES, "accuracy", *SYMPTOMS)
        super().__init__(SmallClassifier(), Digits(), metrics=metrics, kid_subsets=10, batch=None)
