"""Prompts: where they come from, and a data set of prompts without images for data-free distillation."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from fgm.data import Data, PromptCodec
from fgm.data.autoencoder import Autoencoder
from fgm.data.encodings import CacheIndex, PromptCache
from fgm.data.geneval import read_prompts
from fgm.data.shapes.captions import draw_captions
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_lines, stripped
from fgm.utils.pipelines import FACTOR, require_parts, require_size
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class TextFile:
    """One prompt a line; empty lines are skipped."""

    file: str

    def read(self) -> list[str]:
        lines = read_lines(Path(self.file), "one prompt a line")
        return distinct((stripped(line) for _, line in lines), self.file)


@validated
@dataclass(frozen=True)
class JsonLines:
    """The "prompt" of one JSON object a line."""

    file: str

    def read(self) -> list[str]:
        lines = read_lines(Path(self.file), 'a JSON object with "prompt" a line')
        return distinct((parse_prompt(line, where) for where, line in lines if stripped(line)), self.file)


def distinct(prompts: Iterable[str], file: str) -> list[str]:
    """Return the distinct prompts that are not empty, at least one."""
    found = list(dict.fromkeys(filter(None, prompts)))
    if not found:
        raise UserError(f"{file} holds no prompt with something to see")
    return found


def parse_prompt(line: str, where: str) -> str:
    prompt = parse_object(line, where).get("prompt")
    if not isinstance(prompt, str) or not stripped(prompt):
        raise UserError(f"{where}: prompt must be a text with something to see")
    return stripped(prompt)


@validated
@dataclass(frozen=True)
class GenEvalPrompts:
    """The prompts of GenEval.

    Args:
        metadata: evaluation_metadata.jsonl of a GenEval checkout; None for no prompts, if the evaluation is another one.
    """

    metadata: str | None = None

    def read(self) -> list[str]:
        return [prompt.prompt for prompt in read_prompts(Path(self.metadata))] if self.metadata else []


@validated
@dataclass(frozen=True)
class ShapesCaptions:
    """The distinct ones among n random training captions of the shapes data."""

    n: PositiveInt = 1000
    seed: NonNegativeInt = 0

    def read(self) -> list[str]:
        return list(dict.fromkeys(draw_captions(self.n, keyed_generator(self.seed, "prompts", index=0)).prompts()))


class PromptsWithoutImages(Data):
    """What every data set of encoded prompts does alike; `index` has the prompts in the order of their conditions."""

    name: ClassVar[str]  # of the config
    index: Any

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"data = {self.name} has no images: it can be distilled on, not trained on")

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Return no examples, (0, *shape)."""
        del n, generator
        return torch.empty(0, *self.shape)

    @property
    def prompts(self) -> PromptCodec:
        return self

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor: ...

    def decode(self, conditions: Tensor) -> list[str]:
        return [self.index.prompts[i] for i in conditions.tolist()]


@validated
@dataclass(frozen=True)
class PromptDataset(PromptsWithoutImages):
    """Encoded prompts without images: x_0 is a scaled latent, a condition is a prompt's index in the cache.

    The prompts to train on have indices from 1 and are equally likely; 0 is the empty prompt.

    Args:
        cache: the encoded prompts.
        size: side of the images in pixels, a multiple of 16.
        vae: a diffusers directory or hub id, to decode latents.
        std: of latents of real images; SD3's scaling makes it about 1.
        vae_dtype: dtype of the decoder.

    Raises:
        UserError: size is not a multiple of 16.
    """

    cache: PromptCache
    size: PositiveInt
    vae: str
    std: PositiveFloat = 1.0
    vae_dtype: Literal["float32", "bfloat16"] = "float32"

    name: ClassVar[str] = "prompts"
    num_classes = 0

    def __post_init__(self) -> None:
        require_size(self.size)

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        config = json.loads((require_parts(self.vae, ("vae",)) / "vae" / "config.json").read_text())
        return config["latent_channels"], self.size // FACTOR, self.size // FACTOR

    @cached_property
    def index(self) -> CacheIndex:
        return self.cache.read_index()

    @cached_property
    def training_prompts(self) -> int:
        return len(self.cache.prompts.read())

    def conditions(self, n: int, generator: Generator) -> Tensor:
        return torch.randint(1, 1 + self.training_prompts, (n,), generator=generator, device=generator.device)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """
        Raises:
            UserError: a prompt is not in the cache.
        """
        missing = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self.indices))
        if missing:
            raise UserError(
                f"{len(missing)} prompts are not in {self.cache.directory}, the first is {missing[0]!r}; add them to "
                "data.cache.prompts or data.cache.extra_prompts, give another data.cache.directory, and run make "
                "cache-prompts"
            )
        return torch.tensor([self.indices[prompt] for prompt in prompts], dtype=torch.int64)

    @cached_property
    def indices(self) -> dict[str, int]:
        return {prompt: i for i, prompt in enumerate(self.index.prompts)}

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return Autoencoder(self.vae, self.vae_dtype)

    def to_images(self, x_0: Tensor) -> Tensor:
        """Return images (n, 3, size, size) of latents (n, *shape), on their device."""
        return self.autoencoder.to(x_0.device).decode(x_0)
