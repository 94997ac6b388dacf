"""A velocity network for points."""

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fgm.networks import VelocityModel, class_labels
from fgm.networks.embedding import ConditionEmbedding
from fgm.utils.validation import validated


class Block(nn.Module):
    """Residual layer whose input is shifted by the features of time and class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.condition = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        return h + self.layers(self.norm(h) + self.condition(features))


@validated
class VelocityMLP(VelocityModel):
    """v(x_t, t, condition) for x_t (batch, dim).

    Args:
        dim: dimension of a point.
        width: of the hidden layers.
        depth: number of residual blocks.
        num_classes: 0 for an unconditional network; else labels run from 0, and num_classes is the null label.
    """

    def __init__(
        self,
        dim: PositiveInt = 2,
        width: PositiveInt = 128,
        depth: PositiveInt = 3,
        num_classes: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.shape = (dim,)
        self.num_classes = num_classes
        self.embed = nn.Linear(dim, width)
        self.condition = ConditionEmbedding(width, num_classes)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        h, features = self.embed(x_t), nn.functional.silu(self.condition(t, class_labels(self, x_t, condition)))
        for block in self.blocks:
            h = block(h, features)
        return self.head(h)
