"""Stable Diffusion 3's autoencoder (arXiv 2403.03206), from local diffusers files.

A scaled latent z of an image x in [-1, 1], with the autoencoder's own shift and scale (0.0609 and 1.5305), is about
standard normal:

    z = (E(x) - shift) scale,    x = D(z / scale + shift)

A latent's side is an eighth of the image's and is cut into patches of two, so the image's side must be a multiple of 16:
diffusers silently crops any other.
"""

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from fgm.utils.pipelines import load_part


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
