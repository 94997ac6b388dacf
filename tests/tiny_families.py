"""Tiny random pipelines of the families of flow transformers that diffusers has, built from configurations alone.

A pipeline has no text encoder: prompts are given as random encodings, with the names of the pipeline's arguments.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Tensor]
HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}
ROPE = {"axes_dims_rope": (2, 2, 4)}
PACKED = {"in_channels": 16, "out_channels": 16, "joint_attention_dim": 16} | HEADS
ONE_EACH = {"num_layers": 1, "num_single_layers": 1}
KL: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (4, 4, 4, 8), "layers_per_block": 1,
    "latent_channels": 4, "norm_num_groups": 2, "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 1.53, "shift_factor": 0.06,
}  # fmt: skip
CAUSAL = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.5, 2.0, 2.5, 3.0],
    "temperal_downsample": [False, True, True],
}  # fmt: skip
DC_BLOCKS = ("ResBlock",) * 4 + ("EfficientViTBlock",) * 2
LINEAR = {"use_dynamic_shifting": True, "time_shift_type": "linear"}


@dataclass(frozen=True)
class Tiny:
    """One tiny pipeline.

    Attributes:
        pipeline, transformer, vae: diffusers classes, the networks with the arguments that make them tiny.
        shape: of one x_t.
        row: shapes of one prompt's encodings.
        call: arguments of the pipeline's call.
        parts: its other parts, which are None.
        guided, unguided: arguments that switch guidance on, with a scale of 2.5, and off.
        schedule: arguments of the scheduler.
    """

    pipeline: str
    transformer: tuple[str, dict[str, Any]]
    vae: tuple[str, dict[str, Any]]
    row: dict[str, tuple[int, ...]]
    shape: tuple[int, ...] = (4, 4, 4)
    call: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    guided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 2.5})
    unguided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    schedule: dict[str, Any] = field(default_factory=dict)


# fmt: off
KL_VAE = ("AutoencoderKL", KL)
UNSHIFTED_VAE = ("AutoencoderKL", KL | {"shift_factor": None})
SD3_SHAPE = {
    "sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1,
    "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 8, "pos_embed_max_size": 4,
} | HEADS
FLUX_SHAPE = PACKED | ONE_EACH | ROPE | {"pooled_projection_dim": 8}
WORDS: dict[str, tuple[int, ...]] = {"prompt_embeds": (5, 16)}
MASKED = WORDS | {"prompt_attention_mask": (5,)}
POOLED = WORDS | {"pooled_prompt_embeds": (8,)}
THREE = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
TRUE_CFG: dict[str, Any] = {"guided": {"true_cfg_scale": 2.5}, "unguided": {"true_cfg_scale": 1.0}}
TINY: dict[str, Tiny] = {
    "sd3": Tiny("StableDiffusion3Pipeline", ("SD3Transformer2DModel", SD3_SHAPE), KL_VAE, POOLED, parts=THREE),
    "sd35": Tiny(
        "StableDiffusion3Pipeline",
        ("SD3Transformer2DModel", SD3_SHAPE | {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}),
        KL_VAE, POOLED, parts=THREE,
    ),
    "flux_schnell": Tiny(
        "FluxPipeline", ("FluxTransformer2DModel", FLUX_SHAPE), KL_VAE, POOLED, parts=THREE[:4], **TRUE_CFG,
    ),
    "flux_dev": Tiny(
        "FluxPipeline", ("FluxTransformer2DModel", FLUX_SHAPE | {"guidance_embeds": True}), KL_VAE, POOLED,
        parts=THREE[:4], call={"guidance_scale": 3.5}, **TRUE_CFG,
    ),
    "flux2_klein": Tiny(
        "Flux2KleinPipeline",
        ("Flux2Transformer2DModel", PACKED | ONE_EACH | {
            "axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 8, "guidance_embeds": False,
        }),
        ("AutoencoderKLFlux2", {key: KL[key] for key in KL if key not in ("scaling_factor", "shift_factor")}),
        WORDS, shape=(16, 2, 2),
    ),
    "qwen_image": Tiny(
        "QwenImagePipeline", ("QwenImageTransformer2DModel", PACKED | ROPE | {"out_channels": 4, "num_layers": 1}),
        ("AutoencoderKLQwenImage", CAUSAL), WORDS | {"prompt_embeds_mask": (5,)}, **TRUE_CFG,
    ),
    "z_image": Tiny(
        "ZImagePipeline",
        ("ZImageTransformer2DModel", {
            "in_channels": 4, "dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 16, "axes_dims": [4, 2, 2], "axes_lens": [64, 16, 16],
        }),
        KL_VAE, WORDS, unguided={"guidance_scale": 0.0},
    ),
    "sana": Tiny(
        "SanaPipeline",
        ("SanaTransformer2DModel", HEADS | {
            "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 4,
            "timestep_scale": 0.5,
        }),
        ("AutoencoderDC", {
            "in_channels": 3, "latent_channels": 4, "attention_head_dim": 2, "encoder_block_types": DC_BLOCKS,
            "decoder_block_types": DC_BLOCKS, "encoder_block_out_channels": (4,) * 6,
            "decoder_block_out_channels": (4,) * 6, "encoder_qkv_multiscales": ((),) * 4 + ((5,),) * 2,
            "decoder_qkv_multiscales": ((),) * 4 + ((5,),) * 2, "encoder_layers_per_block": (1,) * 6,
            "decoder_layers_per_block": (1,) * 6, "downsample_block_type": "conv",
            "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
            "scaling_factor": 0.41,
        }),
        MASKED, shape=(4, 2, 2), call={"use_resolution_binning": False},
    ),
    "lumina2": Tiny(
        "Lumina2Pipeline",
        ("Lumina2Transformer2DModel", {
            "sample_size": 4, "in_channels": 4, "hidden_size": 16, "num_layers": 1, "num_refiner_layers": 1,
            "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 16, 16), "cap_feat_dim": 16,
        }),
        KL_VAE, MASKED,
    ),
    "aura_flow": Tiny(
        "AuraFlowPipeline",
        ("AuraFlowTransformer2DModel", HEADS | {
            "sample_size": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "joint_attention_dim": 16,
            "caption_projection_dim": 16, "pos_embed_max_size": 16,
        }),
        UNSHIFTED_VAE, MASKED,
    ),
    "chroma": Tiny(
        "ChromaPipeline",
        ("ChromaTransformer2DModel", PACKED | ONE_EACH | ROPE | {
            "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1,
        }),
        KL_VAE, MASKED,
    ),
    "cogview4": Tiny(
        "CogView4Pipeline",
        ("CogView4Transformer2DModel", HEADS | {
            "in_channels": 4, "out_channels": 4, "num_layers": 1, "text_embed_dim": 16, "time_embed_dim": 8,
            "condition_dim": 4, "pos_embed_max_size": 16, "sample_size": 4, "rope_axes_dim": (8, 8),
        }),
        UNSHIFTED_VAE, WORDS,
        schedule=LINEAR | {"base_shift": 1.0, "max_shift": 1.0, "base_image_seq_len": 1},
    ),
    "prx": Tiny(
        "PRXPipeline",
        ("PRXTransformer2DModel", {
            "in_channels": 4, "context_in_dim": 16, "hidden_size": 16, "num_heads": 2, "depth": 1, "axes_dim": [4, 4],
        }),
        KL_VAE, MASKED, call={"use_resolution_binning": False},
    ),
    "wan": Tiny(
        "WanPipeline",
        ("WanTransformer3DModel", {
            "in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 8, "ffn_dim": 16, "num_layers": 1,
            "rope_max_seq_len": 16, "num_attention_heads": 2, "attention_head_dim": 12,
        }),
        ("AutoencoderKLWan", CAUSAL), WORDS, shape=(4, 2, 4, 4), call={"num_frames": 5},
    ),
}
# fmt: on


def random_network(class_name: str, arguments: dict[str, Any], seed: int = 0) -> Any:
    """A network of which no weight is zero: adaLN starts at zero, which would hide terms."""
    import diffusers

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = getattr(diffusers, class_name)(**arguments)
        for weight in net.parameters():
            weight.nan_to_num_().add_(0.1 * torch.randn_like(weight))
        for name, value in net.named_buffers():
            if name.endswith("running_mean"):
                value.normal_()
    return net.eval()


def pipeline(name: str) -> Any:
    import diffusers

    tiny = TINY[name]
    pipe = getattr(diffusers, tiny.pipeline)(
        transformer=random_network(*tiny.transformer), vae=random_network(*tiny.vae),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**tiny.schedule), **dict.fromkeys(tiny.parts),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rows(name: str, n: int = 3) -> list[Row]:
    """Random encodings of n prompts, of which the last has padding if there is a mask."""
    noise = torch.Generator().manual_seed(1)
    made: list[Row] = []
    for i in range(n):
        row = {key: torch.randn(shape, generator=noise) for key, shape in TINY[name].row.items()}
        for key in row:
            if "mask" in key:
                row[key] = torch.arange(len(row[key])) < len(row[key]) - (i == n - 1)
        made.append(row)
    return made
