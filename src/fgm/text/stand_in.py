"""Encodings of prompts that nobody wrote, of the true widths and lengths: what is timed or counted needs no others."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from fgm.pretrained import architecture

PROMPTS = 16
CLIP_TOKENS = 77


class RandomText(nn.Module):
    """Prompts (n,) int64 below PROMPTS -> words (n, 77 + max_length, width) and pooled (n, width).

    Args:
        model: whose widths they have, see architecture.
        max_length: T5's tokens.
    """

    def __init__(self, model: str, max_length: int) -> None:
        super().__init__()
        shape, noise = architecture(model), torch.Generator().manual_seed(0)
        words, pooled = (
            (PROMPTS, CLIP_TOKENS + max_length, shape["joint_attention_dim"]),
            shape["pooled_projection_dim"],
        )
        for name, size in (("words", words), ("pooled", (PROMPTS, pooled))):
            self.register_buffer(name, torch.randn(size, generator=noise).bfloat16(), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.get_buffer("words")[indices], self.get_buffer("pooled")[indices]
