"""A class-conditional diffusion transformer (Peebles and Xie, arXiv 2212.09748), small enough for a laptop.

Tokens are patches. Time and class modulate every block through adaLN-zero, so that a new network's velocity is zero.
Shapes in the code: b batch, n tokens, w width, h heads.
"""

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import silu

from fgm.networks import VelocityModel, class_labels, require_patches, require_shape, zeroed
from fgm.networks.mlp import ConditionEmbedding
from fgm.utils.validation import validated


class Attention(nn.Module):
    """Self-attention, (b, n, w) -> (b, n, w)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, h, n, w/h)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP on tokens (b, n, w), each shifted, scaled and gated by the condition (b, w)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, 2)
        x = x + gate_a * self.attention(torch.addcmul(shift_a, self.norm(x), 1 + scale_a))
        return x + gate_m * self.mlp(torch.addcmul(shift_m, self.norm(x), 1 + scale_m))


@validated
class DiT(VelocityModel):
    """The velocity of images x_t (b, channels, size, size).

    Args:
        size: side of the image, a multiple of patch.
        channels: of the image.
        patch: side of a patch.
        width: of a token, a multiple of heads.
        depth: number of blocks.
        heads: of the attention.
        num_classes: see VelocityModel.

    Raises:
        ValueError: patch does not divide size, or heads do not divide width.
    """

    takes_prompts = False

    def __init__(
        self,
        size: PositiveInt,
        channels: PositiveInt = 1,
        patch: PositiveInt = 2,
        width: PositiveInt = 96,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        num_classes: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        require_patches("DiT", size, patch, width, heads)
        self.shape, self.num_classes = (channels, size, size), num_classes
        self.patchify = nn.PixelUnshuffle(patch)
        self.unpatchify = nn.PixelShuffle(patch)
        self.embed = nn.Linear(channels * patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.condition = ConditionEmbedding(width, num_classes)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, channels * patch**2))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        patches = self.patchify(x_t)
        tokens = self.embed(patches.flatten(2).transpose(1, 2)) + self.position
        features = silu(self.condition(t, class_labels(self, x_t, condition)))
        for block in self.blocks:
            tokens = block(tokens, features)
        shift, scale = self.modulation(features)[:, None].chunk(2, 2)
        output = self.head(torch.addcmul(shift, self.norm(tokens), 1 + scale))
        return self.unpatchify(output.transpose(1, 2).unflatten(2, patches.shape[2:]))
