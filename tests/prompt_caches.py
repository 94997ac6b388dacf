"""Four prompts, their cache, and their encodings by diffusers' pipeline: shared by tests of encoded prompts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgm.data.encodings import PromptCache
from fgm.data.text_encoders import encode_prompts

PROMPTS = ["a red cat", "two dogs, one blue", "a photo of a bench", "x"]
LENGTH = 24


def written(plan: PromptCache, batch: int = 5) -> PromptCache:
    """Encode the prompts of a cache, and return it."""
    encode_prompts(plan, plan.plan(), "cpu", batch, lambda done: None)
    return plan


@torch.inference_mode()
def by_pipeline(
    model: Path, prompts: list[str], without: tuple[str, ...] = (), **options: Any
) -> tuple[Tensor, Tensor]:
    """Encode prompts with the complete pipeline, without the parts named: words and pooled."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(model, **dict.fromkeys(without), **options)
    words, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=LENGTH
    )
    return words, pooled
