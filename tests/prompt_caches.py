"""What tests of encoded prompts share: four prompts, their cache, and what diffusers' pipeline makes of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgm.data.text.cache import encoders_of, write_cache
from fgm.data.text.index import PromptCache

PROMPTS = ["a red cat", "two dogs, one blue", "a photo of a bench", "x"]
LENGTH = 24


def written(plan: PromptCache, batch: int = 5) -> PromptCache:
    index = plan.planned()
    write_cache(plan, index, encoders_of(index, plan.model), batch, lambda done: None)
    return plan


@torch.inference_mode()
def by_pipeline(
    model: Path, prompts: list[str], without: tuple[str, ...] = (), **options: Any
) -> tuple[Tensor, Tensor]:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(model, **dict.fromkeys(without), **options)
    words, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=LENGTH
    )
    return words, pooled
