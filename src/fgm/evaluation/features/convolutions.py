"""Features of random convolutions: they need no weights and see shifts and blurs, but no meaning. For smoke tests."""

from typing import Annotated

import torch
from torch import Tensor, nn

from fgm.evaluation.features.extractor import NetworkExtractor, three_channels, weights_hash
from fgm.evaluation.quantise import dequantise


class RandomConvolutions(NetworkExtractor):
    """Pictures of any size -> the mean over pixels of two seeded convolutions.

    Args:
        dim: number of features.
        seed: of the weights.
        device: auto, cpu or cuda.
    """

    def __init__(
        self, dim: Annotated[int, "[1, inf)"] = 64, seed: Annotated[int, "[0, inf)"] = 0, device: str = "auto"
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Conv2d(3, dim, 3, padding=1), nn.SiLU(), nn.Conv2d(dim, dim, 3, stride=2, padding=1), nn.SiLU()
            )
        super().__init__("random-convolutions", weights_hash(net), dim, net, device)

    def run(self, images: Tensor) -> tuple[Tensor, None]:
        return self.net(dequantise(three_channels(images))).mean((2, 3)), None
