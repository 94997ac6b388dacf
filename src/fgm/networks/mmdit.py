"""The multimodal diffusion transformer of Stable Diffusion 3 (arXiv 2403.03206) as a velocity network for captions.

diffusers' SD3Transformer2DModel predicts eps - x_0 at timestep 1000 t on the rectified path, which is our velocity.
Images here are pixels, and captions are word ids. A frozen, deterministic table replaces the text encoders: one vector
per word, to which the vector of its position is added, and the mean of them as the pooled vector.
"""

import math
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fgm.networks import VelocityModel, require_patches
from fgm.utils.validation import validated


class WordEmbedding(nn.Module):
    """Word ids (n, length) -> vectors (n, length, width) and their mean (n, width); frozen, from a fixed seed."""

    def __init__(self, words: int, length: int, width: int) -> None:
        super().__init__()
        self.length = length
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("words", torch.randn(words, width, generator=generator), persistent=False)
        self.register_buffer("positions", torch.randn(length, width, generator=generator), persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        vectors = (self.get_buffer("words")[tokens] + self.get_buffer("positions")) / math.sqrt(2)
        return vectors, vectors.mean(1)


@validated
class CaptionedMMDiT(VelocityModel):
    """The velocity of images x_t (batch, channels, size, size) for captions (batch, length) int64; id 0 is padding.

    Args:
        size, channels, patch: of the image and its patches.
        width, depth, heads: of the transformer.
        words, length: of the vocabulary and of a caption.
        text_width: of a word's vector.

    Raises:
        ValueError: patch does not divide size, heads do not divide width, or a call without captions.
    """

    takes_prompts = True

    def __init__(
        self,
        size: PositiveInt,
        channels: PositiveInt = 3,
        patch: PositiveInt = 4,
        width: PositiveInt = 128,
        depth: PositiveInt = 6,
        heads: PositiveInt = 4,
        words: PositiveInt = 35,
        length: PositiveInt = 12,
        text_width: PositiveInt = 64,
    ) -> None:
        super().__init__()
        require_patches("MM-DiT", size, patch, width, heads)
        from diffusers import SD3Transformer2DModel  # takes seconds to import

        self.shape, self.num_classes = (channels, size, size), 0
        self.text = WordEmbedding(words, length, text_width)
        self.transformer: Any = SD3Transformer2DModel(
            sample_size=size, patch_size=patch, in_channels=channels, out_channels=channels, num_layers=depth,
            attention_head_dim=width // heads, num_attention_heads=heads, joint_attention_dim=text_width,
            caption_projection_dim=width, pooled_projection_dim=text_width, pos_embed_max_size=size // patch,
        )  # fmt: skip

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            raise ValueError("this network needs a caption for each image: the empty caption is all zeros")
        words, pooled = self.text(condition)
        return self.transformer(x_t, words, pooled, 1000 * t, return_dict=False)[0]

    def unconditional(self, condition: Tensor) -> Tensor:
        return torch.zeros_like(condition)
