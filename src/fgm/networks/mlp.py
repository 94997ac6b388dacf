"""A residual MLP for points, and the embedding of time and class that it shares with the DiT.

The activation decides how steep a map of points can be. A generator sends connected noise to separate modes, so it must
stretch the little noise that falls between them over the whole gap, and SiLU's smooth units turn too slowly for that: the
gap stays filled (experiments/mixture_fgm). ReLU turns at a point.
"""

import math
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fgm.networks import VelocityModel, class_labels
from fgm.utils.validation import validated

FREQUENCIES = 64
Activation = Literal["silu", "relu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


class TimeEmbedding(nn.Module):
    """t (batch,) in [0, 1] -> (batch, width): sinusoids of 1000 t, computed in float32, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        exponents = torch.arange(FREQUENCIES) / FREQUENCIES
        self.register_buffer("omega", 1000 * torch.exp(-math.log(10_000) * exponents), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.get_buffer("omega")
        features = torch.cat([angle.cos(), angle.sin()], 1)
        return self.layers(features.to(next(self.layers.parameters()).dtype))


class ConditionEmbedding(nn.Module):
    """Times (batch,) and labels (batch,) -> (batch, width), for labels as class_labels returns them."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.time(t) if self.label is None else self.time(t) + self.label(labels)


class Block(nn.Module):
    """A residual layer whose input is shifted by the features of time and class."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.condition = nn.Linear(width, width)
        hidden = ACTIVATIONS[activation]()
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), hidden, nn.Linear(2 * width, width))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        return h + self.layers(self.norm(h) + self.condition(features))


@validated
class VelocityMLP(VelocityModel):
    """The velocity of points x_t (batch, dim).

    Args:
        dim: dimension of a point.
        width: of the hidden layers.
        depth: number of residual blocks.
        num_classes: see VelocityModel.
        activation: of the residual blocks, see above.
    """

    takes_prompts = False

    def __init__(
        self,
        dim: PositiveInt = 2,
        width: PositiveInt = 128,
        depth: PositiveInt = 3,
        num_classes: NonNegativeInt = 0,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.shape = (dim,)
        self.num_classes = num_classes
        self.embed = nn.Linear(dim, width)
        self.condition = ConditionEmbedding(width, num_classes)
        self.blocks = nn.ModuleList(Block(width, activation) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        features = nn.functional.silu(self.condition(t, class_labels(self, x_t, condition)))
        h = self.embed(x_t)
        for block in self.blocks:
            h = block(h, features)
        return self.head(h)
