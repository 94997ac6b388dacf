"""Stable Diffusion 3's transformer and autoencoder (arXiv 2403.03206), from local diffusers files.

The transformer predicts eps - x_0 at timestep 1000 t on the rectified path, which is our velocity. x_t is a scaled latent

    z = (E(x) - shift) scale,    x = D(z / scale + shift)

of an image x in [-1, 1], with the VAE's own shift and scale (0.0609 and 1.5305), which make z about standard normal. A
latent's side is an eighth of the image's and is cut into patches of two, so the image's side must be a multiple of 16:
diffusers silently crops any other. A condition is a prompt's index in a cache, 0 for the empty prompt; the module `text`
beside the transformer turns it into encodings. That module has no weights, and several networks may share it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from fgm.networks import VelocityModel, require_shape
from fgm.utils.errors import UserError, first_line
from fgm.utils.pretrained import architecture, require, require_size
from fgm.utils.validation import validated

FACTOR = 8  # pixels per latent, along a side
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


class Autoencoder(nn.Module):
    """Stable Diffusion 3's frozen VAE: images (n, 3, size, size) and latents (n, channels, size/8, size/8), float32.

    Args:
        model: a diffusers directory, or a hub id whose files are in the hub's cache.
        dtype: of the weights and of the arithmetic.
        batch: images at once.

    Raises:
        UserError: its weights are missing.
    """

    def __init__(self, model: str, dtype: Literal["float32", "bfloat16"] = "float32", batch: int = 4) -> None:
        super().__init__()
        self.batch, self.dtype = batch, getattr(torch, dtype)
        vae = load_part("AutoencoderKL", model, "vae", self.dtype)
        self.vae, self.scale, self.shift = vae.eval(), vae.config.scaling_factor, vae.config.shift_factor
        self.requires_grad_(False)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Decode latents on any device into images on the same device; not clamped."""
        parts = [self.vae.decode(self.to_vae(part / self.scale + self.shift)).sample for part in z.split(self.batch)]
        return torch.cat(parts).to(z.device, torch.float32)

    @torch.no_grad()
    def encode(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the posterior's mean or, with a generator on the VAE's device, a sample from the posterior."""
        posteriors = [self.vae.encode(self.to_vae(part)).latent_dist for part in x.split(self.batch)]
        codes = torch.cat([p.sample(generator) if generator else p.mode() for p in posteriors])
        return (codes.to(x.device, torch.float32) - self.shift) * self.scale

    def to_vae(self, x: Tensor) -> Tensor:
        return x.to(self.vae.device, self.dtype)


def load_part(class_name: str, model: str, part: str, dtype: torch.dtype) -> Any:
    """Load one part of a published pipeline, see load_diffusers.

    Raises:
        UserError: the part is missing, or its weights do not fill the network.
    """
    return load_diffusers(class_name, require(model, (part,)) / part, dtype)


def load_diffusers(class_name: str, directory: Path, dtype: torch.dtype) -> Any:
    """Load a diffusers network from config.json and *.safetensors in a local directory, executing nothing in them.

    Raises:
        UserError: its weights do not fill the network; diffusers would fill gaps at random and only warn.
    """
    import diffusers  # takes seconds to import
    from safetensors import SafetensorError

    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        net, info = getattr(diffusers, class_name).from_pretrained(
            directory, torch_dtype=dtype, output_loading_info=True, **local
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{directory} does not load ({first_line(error)}): download it again") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{directory} lacks {len(missing)} weights, {missing[0]} first: download it again")
    return net
