"""Encodings of prompts that nobody wrote, of the true widths and lengths: what is timed or counted needs no others."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from fgm.pretrained import architecture
from fgm.text.encoders import CLIP_LENGTH

PROMPTS = 16


class RandomText(nn.Module):
    """Prompts (n,) int64 below PROMPTS -> words (n, 77 + max_length, width) and pooled (n, width).

    Args:
        model: whose widths they have, see architecture.
        max_length: T5's tokens.
    """

    def __init__(self, model: str, max_length: int) -> None:
        super().__init__()
        shape, noise = architecture(model), torch.Generator().manual_seed(0)
        words, pooled = (CLIP_LENGTH + max_length, shape["joint_attention_dim"]), (shape["pooled_projection_dim"],)
        for name, size in (("words", words), ("pooled", pooled)):
            encoded = torch.randn(PROMPTS, *size, generator=noise).bfloat16()
            self.register_buffer(name, encoded, persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_buffer("words")[indices], self.get_buffer("pooled")[indices]
