"""Features of random convolutions: they need no weights and see shifts and blurs, but no meaning. For smoke tests."""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fgm.data.pixels import dequantise
from fgm.evaluation.features.extractor import NetworkExtractor, three_channels, weights_hash
from fgm.utils.validation import validated


@validated
class RandomConvolutions(NetworkExtractor):
    """Images of any size -> mean (even features) and deviation (odd ones) over pixels of two seeded convolutions.

    Args:
        dim: number of features.
        seed: of the weights.
        device: auto, cpu or cuda.
    """

    def __init__(self, dim: PositiveInt = 64, seed: NonNegativeInt = 0, device: str = "auto") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, dim, 3, 2, padding=1))
            for weight in (w for w in net.parameters() if w.ndim == 4):
                nn.init.kaiming_normal_(weight)  # so that features are of order one
        super().__init__("random-convolutions", weights_hash(net), dim, net, device)

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        maps = self.net(dequantise(three_channels(images))).flatten(2)
        features = maps.mean(2)
        features[:, 1::2] = maps[:, 1::2].std(2)
        return features, None
