"""A folder of images as latents: encoded once, when first asked for, and held in memory.

For sets that fit there, and for training runs that are few; others keep a cache of latents (latents.py).
"""

from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from fgm.data.images import ImageFolder
from fgm.errors import Refusal
from fgm.evaluation.quantise import dequantise

CHUNK = 16  # images at once


class Encoder(Protocol):
    """encode: images (n, c, h, w) in [-1, 1] -> latents as the network knows them, without chance."""

    def encode(self, x: Tensor) -> Tensor: ...


class EncodedImages:
    """Latents of a folder's images, drawn with replacement, with the folder's labels.

    Args:
        images: the folder.
        encoder: of images to scaled latents.

    Raises:
        Refusal: a latent is not finite.
    """

    def __init__(self, images: ImageFolder, encoder: Encoder) -> None:
        self.images, self.encoder = images, encoder
        self.num_classes, self.shape = images.num_classes, tuple(self.encoded(0, 1).shape[1:])

    def encoded(self, start: int, stop: int) -> Tensor:
        with torch.no_grad():
            latents = self.encoder.encode(dequantise(self.images.held[start:stop])).float().cpu()
        if not latents.isfinite().all():
            name = self.images.source.paths[start + int((~latents.flatten(1).isfinite().all(1)).nonzero()[0])]
            raise Refusal(f"{name}: its latent is not finite; encode in float32, or take the image away")
        return latents

    @cached_property
    def held(self) -> Tensor:
        """All latents, float32 (n, *shape)."""
        n = self.images.source.n
        return torch.cat([self.encoded(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)])

    @cached_property
    def std(self) -> float:
        return self.held.std().item()

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        chosen = self.images.choose(n, generator)
        labels = self.images.source.labels
        return self.held[chosen], None if labels is None else labels[chosen]

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        return self.images.conditions(n, generator)

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.draw(n, generator)[0]
