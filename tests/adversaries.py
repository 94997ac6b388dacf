"""What tests of the GAN term share: tiny networks with nothing zero, images of noise, a discriminator."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from toy_trainings import distillation

from fgm.data import Data
from fgm.networks.dit import DiT
from fgm.networks.mmdit import CaptionedMMDiT
from fgm.training.discriminator import GANTerm
from fgm.training.distillation import Distillation

GAN = partial(GANTerm, blocks=["blocks.0"], weight=0.5, width=8)


CONDITION = torch.tensor([[1, 2, 0, 0], [3, 1, 4, 0]])


def mmdit() -> CaptionedMMDiT:
    torch.manual_seed(0)
    net = CaptionedMMDiT(size=8, patch=2, width=16, depth=3, heads=2, words=6, length=4, text_width=8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def dit(num_classes: int = 3) -> DiT:
    torch.manual_seed(0)
    net = DiT(size=4, width=16, depth=2, heads=2, num_classes=num_classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


class Pictures(Data):
    """Noise as images of three classes, whose labels are given or not."""

    shape, num_classes, std = (1, 4, 4), 3, 1.0

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def draw(self, n: int, generator: Any) -> Any:
        return torch.randn(n, *self.shape, generator=generator), self.conditions(
            n, generator
        ) if self.labelled else None

    def conditions(self, n: int, generator: Any) -> Tensor:
        return torch.randint(3, (n,), generator=generator)

    def reference(self, n: int, generator: Any) -> Tensor:
        return self.draw(n, generator)[0]


class Captioned(Pictures):
    """Noise as images that have captions."""

    shape, num_classes = (3, 8, 8), 0

    def conditions(self, n: int, generator: Any) -> Tensor:
        return torch.randint(1, 6, (n, 4), generator=generator)


def gan(**options: Any) -> Distillation:
    config = {"config": options.pop("config")} if "config" in options else {}
    return distillation(discriminator=partial(GAN, **options), **config)
