"""Prompts without images: all that a data-free distillation of a text-to-image model needs.

A condition is a prompt's place in the cache, from 1; 0 is the empty prompt. x_0 is a scaled latent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor

from fgm.data.text.index import Index, PromptCache
from fgm.networks.sd3 import FACTOR, Autoencoder
from fgm.utils.errors import UserError
from fgm.utils.pretrained import require, require_size
from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class Prompts:
    """Cached prompts; those of the cache's source are all equally likely, what it holds besides is never drawn.

    Args:
        cache: of the encoded prompts.
        size: of the images in pixels, a multiple of 16.
        std: of latents of real images; SD3's scaling makes it about 1.
        vae: a diffusers directory or hub id, for pictures.
        vae_dtype: of its arithmetic.
    """

    cache: PromptCache
    size: Annotated[int, Field(ge=16)]
    vae: str
    std: PositiveFloat = 1.0
    vae_dtype: Literal["float32", "bfloat16"] = "float32"

    num_classes = 0

    def __post_init__(self) -> None:
        require_size(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        side = self.size // FACTOR
        return self.channels, side, side

    @cached_property
    def channels(self) -> int:
        """Of a latent."""
        return json.loads((require(self.vae, ("vae",)) / "vae" / "config.json").read_text())["latent_channels"]

    @cached_property
    def index(self) -> Index:
        return self.cache.require()

    @cached_property
    def trained(self) -> int:
        """How many prompts may be drawn: 1 to trained."""
        return len(self.cache.prompts.read())

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """
        Raises:
            UserError: always.
        """
        raise UserError("these data are prompts without images: they serve a distillation, not a training on images")

    def conditions(self, n: int, generator: Generator) -> Tensor:
        """Prompts (n,), on the generator's device; never the empty one."""
        return torch.randint(1, 1 + self.trained, (n,), generator=generator, device=generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """None: (0, *shape)."""
        del n, generator
        return torch.empty(0, *self.shape)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The condition of each prompt, (n,).

        Raises:
            UserError: a prompt is not in the cache.
        """
        missing = [prompt for prompt in prompts if prompt not in self.places]
        if missing:
            raise UserError(
                f"the prompt {missing[0]!r} is not in {self.cache.directory} ({len(missing)} are not): add it to "
                "data.cache.prompts, and make cache-prompts into another data.cache.directory"
            )
        return torch.tensor([self.places[prompt] for prompt in prompts], dtype=torch.int64)

    def decode(self, conditions: Tensor) -> list[str]:
        return [self.index.prompts[i] for i in conditions.tolist()]

    @cached_property
    def places(self) -> dict[str, int]:
        return {prompt: i for i, prompt in enumerate(self.index.prompts)}

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return Autoencoder(self.vae, self.vae_dtype)

    def to_images(self, x_0: Tensor) -> Tensor:
        """Images (n, 3, size, size) of latents (n, *shape), made where they are."""
        return self.autoencoder.to(x_0.device).decode(x_0)
