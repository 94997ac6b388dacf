"""Captioned renders of shapes as a training set; the condition of an image is its caption's token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Generator, Tensor

from fgm.data import Data, PromptCodec
from fgm.data.shapes.captions import EASY, decode, draw_captions, encode
from fgm.data.shapes.scenes import draw_scenes, render
from fgm.utils.random import on_host
from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class Shapes(Data):
    """An unlimited data set, drawn on the fly.

    Args:
        size: pixels of a side.
        shapes: number of shapes; 6 is hard mode.
    """

    size: Literal[32, 64] = 32
    shapes: Annotated[int, Field(ge=2, le=6)] = EASY

    num_classes = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return 3, self.size, self.size

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw images (n, 3, size, size) in [-1, 1] and token ids (n, LENGTH), on the CPU."""
        scenes = draw_scenes(n, on_host(generator), self.size, self.shapes)
        return render(scenes, self.size), scenes.captions.tokens()

    @property
    def prompts(self) -> PromptCodec:
        return self

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the condition of each prompt, (n, LENGTH)."""
        return encode(prompts)

    def decode(self, conditions: Tensor) -> list[str]:
        return decode(conditions)

    def conditions(self, n: int, generator: Generator) -> Tensor:
        """Draw token ids of random captions, (n, LENGTH), on the generator's device."""
        return draw_captions(n, on_host(generator), self.shapes).tokens().to(generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.draw(n, generator)[0]
