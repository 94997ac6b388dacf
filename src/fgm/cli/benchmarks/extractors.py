"""Extractors to be timed: what a network costs does not depend on its weights, so that none need be trained."""

from io import BytesIO

import torch

from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.features.convolutions import RandomConvolutions
from fgm.evaluation.features.extractor import weights_hash
from fgm.evaluation.features.registered import OneLayer
from fgm.evaluation.features.small import SmallClassifier
from fgm.utils.random import keyed_generator


class UntrainedInception(OneLayer):
    """The architecture of fgm.evaluation.features.inception with random weights; 2048 features."""

    def __init__(self, device: str = "auto") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # seconds to import

        class Untrained(FeatureExtractorInceptionV3):
            def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
                """Stay as constructed."""

        nothing = BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        net = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing).eval()
        for i, weight in enumerate(p for p in net.parameters() if p.ndim == 4):
            scale = (2 / weight[0].numel()) ** 0.5  # activations keep their size
            weight.data = torch.randn(weight.shape, generator=keyed_generator("inception", index=i)) * scale
        super().__init__("untrained-inception", weights_hash(net), 2048, net, device, "bilinear as TensorFlow 1")


def extractor_of(name: str) -> FeatureExtractor:
    """By the name that fgm.cli.bench takes."""
    kinds = {"small": SmallClassifier, "convolutions": RandomConvolutions, "inception": UntrainedInception}
    return kinds[name]()
