"""Encoded prompts of any family as a data set for data-free distillation."""

from collections.abc import Sequence
from functools import cached_property

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor

from fgm.data.prompts import PromptsWithoutImages
from fgm.teachers.diffusers.adapter import geometry
from fgm.teachers.diffusers.conditions import PromptFile
from fgm.teachers.diffusers.latents import FamilyAutoencoder
from fgm.utils.errors import UserError
from fgm.utils.pipelines import load_diffusers
from fgm.utils.validation import validated


@validated
class FamilyPrompts(PromptsWithoutImages):
    """Prompts without images: x_0 is a latent, a condition is a prompt's index in the file.

    The prompts to train on have indices from 1 and are equally likely; 0 is the null prompt.

    Args:
        cache: the encoded prompts.
        model, height, width, frames: see adapter.geometry.
        std: of latents of real images, about 1 by the families' scaling.

    Raises:
        UserError: the file is damaged, or see adapter.geometry.
    """

    name = "family_prompts"

    def __init__(
        self, cache: PromptFile, model: str, height: PositiveInt, width: PositiveInt,
        frames: PositiveInt | None = None, std: PositiveFloat = 1.0,
    ) -> None:  # fmt: skip
        self.at, self.index = geometry(model, height, width, frames), cache.read_index()
        self.shape, self.num_classes, self.std = self.at.shape, 0, std  # type: ignore[misc]

    def conditions(self, n: int, generator: Generator) -> Tensor:
        return torch.randint(1, len(self.index.prompts), (n,), generator=generator, device=generator.device)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """
        Raises:
            UserError: a prompt is not in the file.
        """
        if missing := [prompt for prompt in prompts if prompt not in self.index.prompts]:
            raise UserError(f"{missing[0]!r} is not among the encoded prompts: encode it too, see docs/teachers.md")
        return torch.tensor([self.index.prompts.index(prompt) for prompt in prompts], dtype=torch.int64)

    @cached_property
    def autoencoder(self) -> FamilyAutoencoder:
        vae = load_diffusers(self.at.autoencoder, self.at.folder / "vae", torch.float32)
        return FamilyAutoencoder(vae, self.at.family.latents)

    def to_images(self, x_0: Tensor) -> Tensor:
        """Return images (n, 3, height, width) of latents (n, *shape), on their device; of a video its middle frame."""
        x = self.autoencoder.to(x_0.device).decode(x_0)
        return x if x.ndim == 4 else x[:, :, x.shape[2] // 2]
