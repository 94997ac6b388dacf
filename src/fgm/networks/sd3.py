"""Stable Diffusion 3's transformer and autoencoder (arXiv 2403.03206), from local diffusers files.

The transformer predicts eps - x_0 at timestep 1000 t on the rectified path, which is our velocity. x_t is a scaled latent

    z = (E(x) - shift) scale,    x = D(z / scale + shift)

of an image x in [-1, 1], with the VAE's own shift and scale (0.0609 and 1.5305), which make z about standard normal. A
latent's side is an eighth of the image's and is cut into patches of two, so the image's side must be a multiple of 16:
diffusers silently crops any other. A condition is a prompt's index in a cache, 0 for the empty prompt; the module `text`
turns it into encodings for the transformer. That module has no weights, and several networks may share it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from fgm.networks import VelocityModel, require_shape
from fgm.utils.errors import UserError, first_line
from fgm.utils.files import read_object
from fgm.utils.pretrained import has_network, locate
from fgm.utils.validation import validated

FACTOR = 8  # pixels per latent, along a side
MULTIPLE = 2 * FACTOR  # pixels per patch, along a side
SD3_MEDIUM = "stabilityai/stable-diffusion-3-medium-diffusers"
BILLIONS = {  # parameters of the transformer
    SD3_MEDIUM: 2.03,
    "stabilityai/stable-diffusion-3.5-medium": 2.24,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
}
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
OTHER_PARTS = 5.66  # billions of parameters of the CLIPs (0.12, 0.69), T5-XXL's encoder (4.76) and the VAE (0.08)
TRAINING_BYTES = 34  # per parameter: bfloat16 teacher; float32 generator, online, EMA, a gradient, 2 x 2 Adam moments
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
    return load_diffusers(class_name, require_parts(model, (part,)) / part, dtype)


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


def require_parts(model: str, parts: Iterable[str]) -> Path:
    """Return the directory of a diffusers pipeline in which every part is complete.

    Raises:
        UserError: a part is missing; the message says where it comes from, its size and what training needs.
    """
    directory = locate(model)
    missing = [f"{part}/" for part in parts if not has_network(directory / part)]
    if missing:
        raise UserError(f"{model}: no {' and no '.join(missing)} on this machine; {remedy(model)}")
    return directory


def remedy(model: str) -> str:
    """Say where to get a model, its size and the memory that its distillation needs."""
    hub_id = model if model in BILLIONS else SD3_MEDIUM
    size, memory = 2 * (BILLIONS[hub_id] + OTHER_PARTS), TRAINING_BYTES * BILLIONS[hub_id]
    return (
        f"accept its licence and run hf download {hub_id} (at least {size:.0f} GB), or give "
        f"network.model=<its diffusers directory: transformer/, vae/, text_encoder*/, tokenizer*/>; "
        f"a distillation of all its weights takes {memory:.0f} GB of device memory, and activations"
    )


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


def require_size(size: int) -> None:
    """Raise UserError unless size is a multiple of 16."""
    if size % MULTIPLE:
        raise UserError(
            f"network.size = {size} is no multiple of {MULTIPLE}: Stable Diffusion 3 would crop it; give another"
        )
