"""The panel for digits: Fréchet distance in a small classifier's features, and that classifier's accuracy.

Reference: the training split, as CIFAR-10's protocols have it. Floor: the held-out scans. Ceilings: uniform noise, and
held-out scans blurred by a 3 x 3 box. Samples are quantised to uint8 first, as a PNG would be.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fgm.data.digits import Digits
from fgm.errors import Refusal
from fgm.evaluation.classifier import digit_classifier
from fgm.evaluation.frechet import FeatureStatistics, frechet_distance
from fgm.records import Measurement
from fgm.streams import sample_noise


def quantise(x: Tensor) -> Tensor:
    """[-1, 1] to uint8 by rounding, clipped (EDM's mode); bytes are taken as they are."""
    if x.dtype == torch.uint8:
        return x
    return (x * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def dequantise(x: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


class DigitPanel:
    """fd and accuracy of samples (n, 1, 8, 8)."""

    def __init__(self) -> None:
        self.classifier, weights = digit_classifier()
        self.protocol = f"small-classifier-{weights}"
        self.data = Digits()
        self.reference = self.statistics(self.data.split["train"][0])

    def statistics(self, x_0: Tensor) -> FeatureStatistics:
        return FeatureStatistics.of(self.classifier.features(dequantise(quantise(x_0))))

    def identity(self) -> dict[str, Any]:
        return {"protocol": self.protocol}

    def rows(self, x_0: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        if tuple(x_0.shape[1:]) != self.data.shape:
            raise Refusal(f"digits are measured at {self.data.shape}, and these samples are {tuple(x_0.shape[1:])}")
        x = dequantise(quantise(x_0))
        told = {} if labels is None else {"predictions": self.classifier(x).argmax(1), "labels": labels}
        return {"features": self.classifier.features(x)} | told

    def judge(self, rows: dict[str, Tensor]) -> list[Measurement]:
        n = len(rows["features"])
        fd = frechet_distance(FeatureStatistics.of(rows["features"]), self.reference)
        measurements = [Measurement("fd", fd, n, f"{self.protocol}, uint8, training split")]
        if "labels" in rows:
            correct = (rows["predictions"] == rows["labels"]).double().mean().item()
            measurements.append(Measurement("accuracy", correct, n, f"{self.protocol}, uint8"))
        return measurements

    def measure(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        return self.judge(self.rows(x_0, labels))

    def bounds(self) -> list[Measurement]:
        scans, labels = self.data.split["test"]
        noise = sample_noise(0, range(len(scans)), self.data.shape, role="ceiling").clamp(-1, 1)
        sets = {"floor: held-out scans": scans, "ceiling: noise": noise, "ceiling: blurred scans": blur(scans)}
        return [
            Measurement(m.metric, m.value, m.n, f"{name}; {m.protocol}")
            for name, x in sets.items()
            for m in self.measure(x, labels)
        ]


def blur(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
