"""Stable Diffusion 3's transformer (arXiv 2403.03206), from local diffusers files.

The transformer predicts eps - x_0 at timestep 1000 t on the rectified path, which is our velocity. x_t is a scaled latent
of the autoencoder (data/autoencoder.py). A condition is a prompt's index in a cache, 0 for the empty prompt; the module
`text` turns it into encodings for the transformer. That module has no weights, and several networks may share it.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel, require_shape
from fgm.utils.errors import UserError
from fgm.utils.files import read_object
from fgm.utils.pipelines import FACTOR, SD3_MEDIUM, load_part, require_size
from fgm.utils.pretrained import locate
from fgm.utils.validation import validated

COMMON_SHAPE = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {  # arguments of SD3Transformer2DModel, as in the published config.json
    SD3_MEDIUM: COMMON_SHAPE | {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192,
    },
    "stabilityai/stable-diffusion-3.5-medium": COMMON_SHAPE | {
        "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
    },
    "stabilityai/stable-diffusion-3.5-large": COMMON_SHAPE | {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}  # fmt: skip
Size = Annotated[int, Field(ge=16)]


@validated
class SD3Velocity(VelocityModel):
    """v(x_t, t, prompts) for latents x_t (batch, channels, size/8, size/8) and prompts (batch,) int64.

    Args:
        transformer: diffusers' SD3Transformer2DModel.
        text: prompts (n,) -> words (n, tokens, width), pooled (n, width).
        size: of the image in pixels.
        checkpointing: recompute each block in the backward pass, for a tenth of the activation memory.

    Raises:
        UserError: size is no multiple of 16, or larger than the transformer takes.
    """

    takes_prompts, path, null_condition = True, RectifiedPath(), True

    def __init__(self, transformer: Any, text: nn.Module, size: Size, checkpointing: bool = False) -> None:
        super().__init__()
        require_size(size)
        config, side = transformer.config, size // FACTOR
        if side // config.patch_size > config.pos_embed_max_size:
            most = config.pos_embed_max_size * config.patch_size * FACTOR
            raise UserError(f"network.size = {size}: this transformer takes images of at most {most} pixels a side")
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        self.shape, self.num_classes = (config.in_channels, side, side), 0
        self.transformer, self.text = transformer, text

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        if condition is None:
            raise ValueError("this network needs a prompt for each latent: the empty prompt is 0")
        dtype = self.transformer.dtype
        words, pooled = (encoded.to(dtype) for encoded in self.text(condition))
        return self.transformer(x_t.to(dtype), words, pooled, 1000 * t.float(), return_dict=False)[0].to(x_t.dtype)

    def unconditional(self, condition: Tensor) -> Tensor:
        return torch.zeros_like(condition)


@validated
def pretrained(
    model: str, text: Any, size: Size, checkpointing: bool = False, random_init: bool = False
) -> SD3Velocity:
    """Load published weights in float32.

    Args:
        model: a diffusers directory, or a hub id whose files are in the hub's cache.
        text, size, checkpointing: see SD3Velocity.
        random_init: random weights in the model's shape, for which no file is needed; for benchmarks.

    Raises:
        UserError: the weights are missing, or need other encodings than text has.
    """
    if random_init:
        return untrained(architecture(model), text, size, checkpointing)
    transformer = load_part("SD3Transformer2DModel", model, "transformer", torch.float32)
    widths = {"words": transformer.config.joint_attention_dim, "pooled": transformer.config.pooled_projection_dim}
    if text.index.widths != widths:
        raise UserError(f"{model} needs encodings of widths {widths}, and the cache has {text.index.widths}")
    return SD3Velocity(transformer, text, size, checkpointing)


@validated
def untrained(transformer: dict[str, Any], text: Any, size: Size, checkpointing: bool = False) -> SD3Velocity:
    """Build random weights; transformer holds the arguments of diffusers' SD3Transformer2DModel."""
    from diffusers import SD3Transformer2DModel  # takes seconds to import

    return SD3Velocity(SD3Transformer2DModel(**transformer), text, size, checkpointing)


def architecture(model: str) -> dict[str, Any]:
    """Return the arguments of SD3Transformer2DModel, from the model's directory or as published.

    Raises:
        UserError: the model is neither here nor known.
    """
    file = locate(model) / "transformer" / "config.json"
    if file.is_file():
        config = read_object(file, "the transformer's arguments")
        return {key: value for key, value in config.items() if not key.startswith("_")}
    if model not in SHAPES:
        raise UserError(
            f"network.model = {model}: there is no {file}, and its shape is not known; {', '.join(SHAPES)} are"
        )
    return SHAPES[model]
