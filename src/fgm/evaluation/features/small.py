"""A small classifier's penultimate layer, standardised over the training split (evaluation/classifier.py)."""

from torch import Tensor

from fgm.data.pixels import dequantise
from fgm.evaluation.classifier import RECIPES, Classifier, Space, classifier
from fgm.evaluation.features.extractor import NetworkExtractor
from fgm.utils.errors import UserError


class SmallClassifier(NetworkExtractor):
    """Grey images -> features and the logits of ten classes: digits of 8 x 8, or clothes of 28 x 28."""

    net: Classifier
    reads_labels = True

    def __init__(self, space: Space = "digits") -> None:
        net, weights = classifier(space)
        self.space, self.side = space, RECIPES[space].size
        super().__init__(RECIPES[space].id, weights, len(net.get_buffer("mean")), net, "cpu")

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (1, self.side, self.side)
        if images.shape[1:] != wanted:
            told = ", ".join(map(str, wanted))
            raise UserError(
                f"{self.id} reads {self.space} (n, {told}), not {tuple(images.shape)}: take another extractor"
            )
        body = self.net.body(dequantise(images))
        return self.net.standardise(body), self.net.head(body)
