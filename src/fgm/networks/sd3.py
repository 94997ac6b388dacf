"""Stable Diffusion 3's transformer (arXiv 2403.03206) as a velocity network on latents, for encoded prompts.

It predicts eps - x_0 at timestep 1000 t on the rectified path, which is our velocity. x_t is a scaled latent (see
latents.py), an eighth of the image's side, in patches of two: the image's side is a multiple of 16, as diffusers
would silently crop any other. A condition is the prompt's place in a cache, 0 for the empty prompt, which a module
beside the transformer turns into (words, pooled): that module has no weights, and all networks may share one.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fgm.networks import VelocityModel, require_shape
from fgm.networks.published import load_part
from fgm.utils.errors import UserError
from fgm.utils.pretrained import architecture, require_size
from fgm.utils.validation import validated

FACTOR = 8  # pixels of a latent's side
Size = Annotated[int, Field(ge=16)]


@validated
class SD3Velocity(VelocityModel):
    """v(x_t, t, prompts) for latents x_t (batch, channels, size/8, size/8) and prompts (batch,) int64.

    Args:
        transformer: diffusers' SD3Transformer2DModel.
        text: prompts (n,) -> words (n, tokens, width), pooled (n, width).
        size: of the image in pixels.
        checkpointing: compute each block again on the way back, for a tenth of the memory.
    """

    def __init__(self, transformer: Any, text: nn.Module, size: Size, checkpointing: bool = False) -> None:
        super().__init__()
        require_size(size)
        config, side = transformer.config, size // FACTOR
        if side // config.patch_size > config.pos_embed_max_size:
            most = config.pos_embed_max_size * config.patch_size * FACTOR
            raise UserError(f"network.size = {size}: this transformer takes pictures of at most {most} pixels a side")
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        self.shape, self.num_classes = (config.in_channels, side, side), 0
        self.transformer, self.text = transformer, text

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        require_shape(self, x_t)
        if condition is None:
            raise ValueError("this network reads prompts, and was given none: the empty prompt is 0")
        dtype = self.transformer.dtype
        words, pooled = (encoded.to(dtype) for encoded in self.text(condition))
        return self.transformer(x_t.to(dtype), words, pooled, 1000 * t.float(), return_dict=False)[0].to(x_t.dtype)

    def null(self, condition: Tensor) -> Tensor:
        return torch.zeros_like(condition)


@validated
def pretrained(
    model: str, text: Any, size: Size, checkpointing: bool = False, random_init: bool = False
) -> SD3Velocity:
    """Published weights, in float32.

    Args:
        model: a diffusers directory, or a hub id whose files are in the hub's cache.
        text, size, checkpointing: see SD3Velocity.
        random_init: random weights in the model's shape, of which no file is needed; to be timed or counted.

    Raises:
        UserError: the weights are missing, or read other encodings than text gives.
    """
    if random_init:
        return untrained(architecture(model), text, size, checkpointing)
    transformer = load_part("SD3Transformer2DModel", model, "transformer", torch.float32)
    require_widths(transformer.config, text, model)
    return SD3Velocity(transformer, text, size, checkpointing)


@validated
def untrained(transformer: dict[str, Any], text: Any, size: Size, checkpointing: bool = False) -> SD3Velocity:
    """Random weights; transformer holds the arguments of diffusers' SD3Transformer2DModel."""
    from diffusers import SD3Transformer2DModel  # seconds to import, needed here alone

    return SD3Velocity(SD3Transformer2DModel(**transformer), text, size, checkpointing)


def require_widths(config: Any, text: Any, model: str) -> None:
    found = {"words": config.joint_attention_dim, "pooled": config.pooled_projection_dim}
    if text.index.widths != found:
        raise UserError(f"{model} reads encodings of widths {found}, and the cache holds {text.index.widths}")
