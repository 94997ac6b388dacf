"""Families of flow transformers in diffusers: everything in which one is called differently from another.

A family is recognised by its pipeline, the _class_name in model_index.json. Names of a condition's parts are those of the
arguments of the pipeline's call (prompt_embeds, pooled_prompt_embeds, ...), as its encode_prompt returns them.

Shift. A scheduler maps evenly spaced times s to t = shift s / (1 + (shift - 1) s). Depending on scheduler_config.json, shift
is a constant, exp(mu) or mu, with a mu that the pipeline computes from the number of image tokens.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fgm.networks.lora import ATTENTION
from fgm.teachers.diffusers import layouts
from fgm.teachers.diffusers.guidance import Rule, classifier_free, excess, rescaled
from fgm.teachers.diffusers.latents import LatentMap, batch_norm, per_channel, scale, scale_and_shift
from fgm.teachers.diffusers.layouts import Arguments, Grid, Layout, SingleFrames, Tokens
from fgm.utils.errors import UserError

Scheduler = Mapping[str, Any]
WORDS = {"prompt_embeds": "encoder_hidden_states"}
POOLED = WORDS | {"pooled_prompt_embeds": "pooled_projections"}
MASKED = WORDS | {"prompt_attention_mask": "encoder_attention_mask"}
NAMES = ("prompt_embeds", "negative_prompt_embeds")
POOLED_NAMES = (*NAMES, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED_NAMES = (
    "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask",
)  # fmt: skip
CHROMA_NAMES = (*MASKED_NAMES[:1], "text_ids", *MASKED_NAMES[1:3], "negative_text_ids", MASKED_NAMES[3])
MASKED_JOINT = WORDS | {"prompt_attention_mask": "attention_mask"}


def by_length(scheduler: Scheduler, tokens: int, channels: int, steps: int) -> float:
    """Return mu, linear in the number of tokens."""
    del channels, steps
    start, end = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return low + (high - low) * (tokens - start) / (end - start)


def by_channels(scheduler: Scheduler, tokens: int, channels: int, steps: int) -> float:
    """Return by_length of the number of channels, which Lumina2's pipeline takes for the number of tokens."""
    del tokens
    return by_length(scheduler, channels, channels, steps)


def by_root(scheduler: Scheduler, tokens: int, channels: int, steps: int) -> float:
    """Return CogView4's mu, linear in the square root of the number of tokens."""
    del channels, steps
    root = math.sqrt(tokens / scheduler.get("base_image_seq_len", 256))
    return root * scheduler.get("max_shift", 0.75) + scheduler.get("base_shift", 0.25)


def empirical(scheduler: Scheduler, tokens: int, channels: int, steps: int) -> float:
    """Return FLUX.2's mu, linear in the number of tokens and in the number of steps."""
    del scheduler, channels
    at_200 = 0.00016927 * tokens + 0.45666666
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 if tokens > 4300 else at_10 + (at_200 - at_10) * (steps - 10) / 190


@dataclass(frozen=True)
class Family:
    """How the transformers of a family are called.

    Attributes:
        pipeline, transformer: diffusers classes.
        arguments: names of a condition's parts, and of the transformer's arguments that they become.
        layout: of the latents in the transformer.
        latents: between the autoencoder's latents and ours.
        time: (velocity, t) -> the transformer's time.  time_argument: its name.
        sign: 1 if the transformer predicts eps - x_0, -1 if it predicts x_0 - eps.
        more: (velocity, x, arguments so far) -> arguments that follow from the shapes.
        encoded: what the pipeline's encode_prompt returns, in its order.
        listed: whether a condition's parts are lists of one tensor a prompt, of any lengths.
        guidance: how the pipeline combines two velocities.
        mu: of a scheduler with dynamic shifting.
        lora_targets: linear layers that get an adapter.
    """

    pipeline: str
    transformer: str
    arguments: Mapping[str, str]
    encoded: tuple[str, ...]
    layout: Layout
    latents: LatentMap
    time: Callable[[Any, Tensor], Tensor] = layouts.thousandths
    time_argument: str = "timestep"
    sign: int = 1
    more: Callable[[Any, Tensor, Arguments], Arguments] = layouts.nothing
    listed: bool = False
    guidance: Rule = classifier_free
    mu: Callable[[Scheduler, int, int, int], float] = by_length
    lora_targets: tuple[str, ...] = ATTENTION

    def shift(self, scheduler: Scheduler, tokens: int, channels: int, steps: int = 50) -> float:
        """Return the shift of a scheduler for images of so many tokens, see above; steps matter to FLUX.2 only."""
        if not scheduler.get("use_dynamic_shifting"):
            return float(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))  # flow_shift: UniPC's and DPM's name
        mu = self.mu(scheduler, tokens, channels, steps)
        return mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu)


FAMILIES = {
    family.pipeline: family
    for family in (
        Family(  # SD3 and SD3.5
            "StableDiffusion3Pipeline", "SD3Transformer2DModel", POOLED, POOLED_NAMES, Grid(2), scale_and_shift,
        ),
        Family(  # FLUX.1 schnell, and dev with its embedded guidance
            "FluxPipeline", "FluxTransformer2DModel", POOLED, ("prompt_embeds", "pooled_prompt_embeds", "text_ids"),
            Tokens(2), scale_and_shift, time=layouts.plain, more=layouts.flux_ids,
        ),
        Family(
            "Flux2KleinPipeline", "Flux2Transformer2DModel", WORDS, ("prompt_embeds", "text_ids"), Tokens(1), batch_norm,
            time=layouts.plain, more=layouts.flux2_ids, mu=empirical,
            lora_targets=(*ATTENTION, "to_qkv_mlp_proj", "attn.to_out"),
        ),
        Family(
            "QwenImagePipeline", "QwenImageTransformer2DModel",
            WORDS | {"prompt_embeds_mask": "encoder_hidden_states_mask"},
            ("prompt_embeds", "prompt_embeds_mask"), Tokens(2), per_channel, time=layouts.plain, more=layouts.qwen_shapes, guidance=rescaled,
        ),
        Family(
            "ZImagePipeline", "ZImageTransformer2DModel", {"prompt_embeds": "cap_feats"}, NAMES, SingleFrames(),
            scale_and_shift, time=layouts.reversed_time, time_argument="t", sign=-1, listed=True, guidance=excess,
        ),
        Family(  # SANA and SANA 1.5
            "SanaPipeline", "SanaTransformer2DModel", MASKED, MASKED_NAMES, Grid(1), scale, time=layouts.sana_time,
        ),
        Family(
            "Lumina2Pipeline", "Lumina2Transformer2DModel", MASKED, MASKED_NAMES, Grid(2), scale_and_shift,
            time=layouts.reversed_time, sign=-1, guidance=rescaled, mu=by_channels,
        ),
        Family(
            "AuraFlowPipeline", "AuraFlowTransformer2DModel", WORDS, MASKED_NAMES, Grid(2), scale, time=layouts.plain,
        ),
        Family(
            "ChromaPipeline", "ChromaTransformer2DModel", MASKED_JOINT, CHROMA_NAMES, Tokens(2), scale_and_shift,
            time=layouts.plain, more=layouts.chroma_ids,
        ),
        Family(
            "CogView4Pipeline", "CogView4Transformer2DModel", WORDS, NAMES, Grid(2), scale,
            time=layouts.unshifted, more=layouts.cogview_sizes, mu=by_root,
        ),
        Family(
            "PRXPipeline", "PRXTransformer2DModel", MASKED_JOINT, MASKED_NAMES, Grid(2), scale_and_shift,
            time=layouts.plain, lora_targets=("img_qkv_proj", "txt_kv_proj", "to_out.0"),
        ),
        Family(  # Wan 2.1, text to video
            "WanPipeline", "WanTransformer3DModel", WORDS, NAMES, Grid(2), per_channel,
        ),
    )
}  # fmt: skip


def known_family(pipeline: str) -> Family:
    """
    Raises:
        UserError: the pipeline's family is not known.
    """
    if pipeline not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"{pipeline} is no pipeline of a known family, {known}; docs/teachers.md shows how to add one")
    return FAMILIES[pipeline]
