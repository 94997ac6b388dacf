"""The autoencoder of Stable Diffusion 3: images in [-1, 1] and the scaled latents that its flow lives in.

    z = (E(x) - shift) scale        x = D(z / scale + shift)

with the VAE's own shift and scale (0.0609 and 1.5305), after which latents are about standard normal in size.
"""

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from fgm.networks.published import load_part


class Autoencoder(nn.Module):
    """Frozen; images (n, 3, size, size), latents (n, channels, size/8, size/8), both float32.

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
        """Latents on any device -> images on the same one; not clamped."""
        parts = [self.vae.decode(self.taken(part / self.scale + self.shift)).sample for part in z.split(self.batch)]
        return torch.cat(parts).to(z.device, torch.float32)

    @torch.no_grad()
    def encode(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """The posterior's mean, or a draw from it; the generator lives on the VAE's device."""
        posteriors = [self.vae.encode(self.taken(part)).latent_dist for part in x.split(self.batch)]
        codes = torch.cat([p.sample(generator) if generator else p.mode() for p in posteriors])
        return (codes.to(x.device, torch.float32) - self.shift) * self.scale

    def taken(self, x: Tensor) -> Tensor:
        return x.to(self.vae.device, self.dtype)
