"""The panel for digits with the signs of failure of symptoms.py, each against the training split.

    class_tv      the classifier's answers against the labels asked for, or the training split's where none were
    diversity     in the classifier's features
    power_*       of the pixels

Blur shows in power_high long before it shows in accuracy; a class drawn from one template shows in diversity alone.
"""

import torch
from torch import Tensor

from fgm.evaluation.images import DigitPanel, dequantise, quantise
from fgm.evaluation.symptoms import diversity, power_ratios, total_variation
from fgm.records import Measurement

CLASSES = 10
POWER = "mean radial power of uint8 pixels in the band, over the training split's"


class WatchedDigitPanel(DigitPanel):
    """fd, accuracy and signs of failure of samples (n, 1, 8, 8)."""

    def measure(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        return super().measure(x_0, labels) + self.symptoms(dequantise(quantise(x_0)), labels)

    @torch.no_grad()
    def symptoms(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        scans, classes = self.data.split["train"]
        read = self.classifier(x_0).argmax(1).bincount(minlength=CLASSES)
        asked = (classes if labels is None else labels.cpu()).bincount(minlength=CLASSES)
        spread, n = diversity(self.classifier.features(x_0), self.classifier.features(scans))
        against = "labels asked for" if labels is not None else "training split"
        measured = [
            Measurement("class_tv", total_variation(read, asked), len(x_0), f"{self.protocol}, against the {against}"),
            Measurement("diversity", spread, n, f"{self.protocol}, nearest neighbours, over the training split's"),
        ]
        ratios = power_ratios(x_0, scans).items()
        return measured + [Measurement(name, ratio, len(x_0), POWER) for name, ratio in ratios]
