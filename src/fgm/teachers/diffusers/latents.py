"""Between an autoencoder's latents and those that a family's flow runs in: z = (code - mean) / std, and a change of shape.

scale              std = 1 / scaling_factor                              also where the config has a shift_factor
scale_and_shift    the same, mean = shift_factor
per_channel        latents_mean and latents_std of the config; codes of images are videos of one frame
batch_norm         statistics of the autoencoder's batch-norm layer, over patches of 2 x 2 codes (FLUX.2)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

LatentMap = Callable[[Any], tuple[Any, Any, int]]  # autoencoder -> mean, std, codes a side that one latent covers


def scale(vae: Any) -> tuple[Any, Any, int]:
    return 0.0, 1 / vae.config.scaling_factor, 1


def scale_and_shift(vae: Any) -> tuple[Any, Any, int]:
    return vae.config.get("shift_factor") or 0.0, 1 / vae.config.scaling_factor, 1


def per_channel(vae: Any) -> tuple[Any, Any, int]:
    mean, std = (torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, std, 1


def batch_norm(vae: Any) -> tuple[Any, Any, int]:
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(-1, 1, 1), variance.sqrt().view(-1, 1, 1), 2


def pixels_per_code(config: Mapping[str, Any]) -> int:
    """Return the pixels a side that one code covers, from the config of a diffusers autoencoder."""
    if "scale_factor_spatial" in config:  # Wan
        return config["scale_factor_spatial"]
    if "temperal_downsample" in config:  # Qwen-Image
        return 2 ** len(config["temperal_downsample"])
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]  # DC-AE, and all others
    return 2 ** (len(blocks) - 1)


class FamilyAutoencoder(nn.Module):
    """A family's frozen autoencoder: images (n, 3, h, w) or videos (n, 3, frames, h, w) in [-1, 1], and latents, float32.

    Args:
        vae: the diffusers network.
        latents: see Family.
        batch: samples at once.
    """

    def __init__(self, vae: Any, latents: LatentMap, batch: int = 4) -> None:
        super().__init__()
        self.vae, self.batch = vae.eval().requires_grad_(False), batch
        self.mean, self.std, self.patch = latents(vae)
        self.framed = isinstance(self.mean, Tensor) and self.mean.ndim == 4

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Decode latents of images (n, c, h, w) or videos (n, c, frames, h, w) on any device; not clamped."""
        return torch.cat([self.decode_batch(part) for part in z.split(self.batch)]).to(z.device, torch.float32)

    def decode_batch(self, z: Tensor) -> Tensor:
        x = self.vae.decode(self.to_code(z.to(self.vae.device)).to(self.vae.dtype)).sample
        return x.squeeze(2) if self.framed and z.ndim == 4 else x

    def to_code(self, z: Tensor) -> Tensor:
        """Return the codes that the diffusers network decodes."""
        code = z.float().unsqueeze(2) if self.framed and z.ndim == 4 else z.float()
        code = code * to_device(self.std, z) + to_device(self.mean, z)
        return nn.functional.pixel_shuffle(code, self.patch) if self.patch > 1 else code

    @torch.no_grad()
    def encode(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Return the posterior's mode or, with a generator on its device, a sample; DC-AE has one code an image."""
        return torch.cat([self.encode_batch(part, generator) for part in x.split(self.batch)]).to(
            x.device, torch.float32
        )

    def encode_batch(self, x: Tensor, generator: Generator | None) -> Tensor:
        single, x = self.framed and x.ndim == 4, x.to(self.vae.device, self.vae.dtype)
        encoded = self.vae.encode(x.unsqueeze(2) if single else x)
        posterior = getattr(encoded, "latent_dist", None)
        code = encoded.latent if posterior is None else posterior.sample(generator) if generator else posterior.mode()
        if self.patch > 1:
            code = nn.functional.pixel_unshuffle(code, self.patch)
        z = (code.float() - to_device(self.mean, code)) / to_device(self.std, code)
        return z.squeeze(2) if single else z


def to_device(value: Any, like: Tensor) -> Any:
    return value.to(like.device, torch.float32) if isinstance(value, Tensor) else value
