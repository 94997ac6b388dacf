"""A fixed pool of an unlimited set, drawn once and kept on the device that trains: for GPUs that outrun a renderer."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Generator, Tensor

from fgm.data import Data
from fgm.data.pixels.quantise import dequantise, quantise
from fgm.utils.random import keyed_generator

CHUNK = 10_000


@dataclass(frozen=True)
class Pool:
    """n examples of data in uint8, which are drawn with replacement.

    Args:
        data: images in [-1, 1] with conditions.
        n: size of the pool.
        seed: of the pool.
    """

    data: Data
    n: Annotated[int, "[10000, inf)"] = 200_000
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def std(self) -> float:
        return self.data.std

    @cached_property
    def held(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Images and conditions by the device that asked for them."""
        sizes = [min(CHUNK, self.n - start) for start in range(0, self.n, CHUNK)]
        chunks = [self.data.draw(size, keyed_generator(self.seed, "pool", index=i)) for i, size in enumerate(sizes)]
        images = torch.cat([quantise(x) for x, _ in chunks])
        return {"cpu": (images, torch.cat([condition for _, condition in chunks if condition is not None]))}

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        device = str(generator.device)
        if device not in self.held:
            images, conditions = self.held["cpu"]
            self.held[device] = images.to(device), conditions.to(device)
        images, conditions = self.held[device]
        chosen = torch.randint(len(images), (n,), generator=generator, device=generator.device)
        return dequantise(images[chosen]), conditions[chosen]

    def conditions(self, n: int, generator: Generator) -> Tensor:
        return self.draw(n, generator)[1]

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.data.reference(n, generator)
