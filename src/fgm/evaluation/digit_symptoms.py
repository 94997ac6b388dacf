"""The panel for digits with the signs of failure of symptoms.py, each against the training split.

    class_tv      the classifier's answers against the labels asked for, or the training split's where none were
    diversity     in the classifier's features
    power_*       of the pixels

Blur shows in power_high long before it shows in accuracy; a class drawn from one template shows in diversity alone.
"""

import torch
from torch import Tensor

from fgm.evaluation import Rows
from fgm.evaluation.classifier import digit_classifier
from fgm.evaluation.images import DigitPanel
from fgm.evaluation.quantise import dequantise, quantise
from fgm.evaluation.symptoms import diversity, power_ratios, total_variation
from fgm.records import Measurement

CLASSES = 10
POWER = "mean radial power of uint8 pixels in the band, over the training split's"


class WatchedDigitPanel(DigitPanel):
    """fd, accuracy and signs of failure of samples (n, 1, 8, 8)."""

    def rows(self, x_0: Tensor, labels: Tensor | None) -> Rows:
        return super().rows(x_0, labels) | {"pixels": quantise(x_0)}

    def judge(self, rows: Rows) -> list[Measurement]:
        return super().judge(rows) + self.symptoms(dequantise(rows["pixels"]), rows.get("labels"))

    @torch.no_grad()
    def symptoms(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        classifier, weights = digit_classifier()
        scans, classes = self.data.split["train"]
        protocol = f"small-classifier-{weights}"
        read = classifier(x_0).argmax(1).bincount(minlength=CLASSES)
        asked = (classes if labels is None else labels.cpu()).bincount(minlength=CLASSES)
        spread, n = diversity(classifier.features(x_0), classifier.features(scans))
        against = "labels asked for" if labels is not None else "training split"
        measured = [
            Measurement("class_tv", total_variation(read, asked), len(x_0), f"{protocol}, against the {against}"),
            Measurement("diversity", spread, n, f"{protocol}, nearest neighbours, over the training split's"),
        ]
        ratios = power_ratios(x_0, scans).items()
        return measured + [Measurement(name, ratio, len(x_0), POWER) for name, ratio in ratios]
