"""Features of time and class that condition a velocity network."""

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 64


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
    """Time plus class, (batch, width), for labels as class_labels gives them: num_classes is the null one."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.time(t) if self.label is None else self.time(t) + self.label(labels)
