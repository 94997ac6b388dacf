"""The panel for digits: Fréchet distance in a small classifier's features, and that classifier's accuracy.

Reference: the training split, as CIFAR-10's protocols have it. Floor: the held-out scans. Ceilings: uniform noise, and
held-out scans blurred by a 3 x 3 box. Samples are quantised to uint8 first, as a PNG would be.
"""

from torch import Tensor
from torch.nn.functional import avg_pool2d

from fgm.data.digits import Digits
from fgm.evaluation.classifier import accuracy, digit_classifier
from fgm.evaluation.frechet import FeatureStatistics, frechet_distance
from fgm.evaluation.quantise import dequantise, quantise
from fgm.records import Measurement
from fgm.streams import sample_noise


class DigitPanel:
    """fd and accuracy of samples (n, 1, 8, 8)."""

    def __init__(self) -> None:
        self.classifier, weights = digit_classifier()
        self.protocol = f"small-classifier-{weights}"
        self.data = Digits()
        self.reference = self.statistics(self.data.split["train"][0])

    def statistics(self, x_0: Tensor) -> FeatureStatistics:
        return FeatureStatistics.of(self.classifier.features(dequantise(quantise(x_0))))

    def measure(self, x_0: Tensor, labels: Tensor | None) -> list[Measurement]:
        fd = frechet_distance(self.statistics(x_0), self.reference)
        measurements = [Measurement("fd", fd, len(x_0), f"{self.protocol}, uint8, training split")]
        if labels is not None:
            correct = accuracy(self.classifier, dequantise(quantise(x_0)), labels)
            measurements.append(Measurement("accuracy", correct, len(x_0), f"{self.protocol}, uint8"))
        return measurements

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
