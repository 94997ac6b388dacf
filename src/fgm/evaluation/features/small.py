"""The digit classifier's penultimate layer, standardised over the training split (evaluation/classifier.py)."""

from torch import Tensor

from fgm.errors import Refusal
from fgm.evaluation.classifier import DigitClassifier, digit_classifier
from fgm.evaluation.features.extractor import NetworkExtractor
from fgm.evaluation.quantise import dequantise


class SmallClassifier(NetworkExtractor):
    """Grey 8 x 8 digits -> 32 features and the ten digits' logits."""

    net: DigitClassifier
    reads_labels = True

    def __init__(self) -> None:
        net, weights = digit_classifier()
        super().__init__("small-classifier", weights, len(net.get_buffer("mean")), net, "cpu")

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != (1, 8, 8):
            raise Refusal(
                f"small-classifier reads digits (n, 1, 8, 8), not {tuple(images.shape)}: take another extractor"
            )
        body = self.net.body(dequantise(images))
        return self.net.standardise(body), self.net.head(body)
