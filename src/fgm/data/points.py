"""Distributions of points in the plane, unlimited and drawn on the fly."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from fgm.data import Data
from fgm.flow.analytic import GaussianMixture, ring
from fgm.utils.random import on_host
from fgm.utils.validation import validated


class Points(Data):
    """Unlabelled points (n, 2); `mixture` is their density if it is known."""

    shape = (2,)
    std_examples = 10_000
    mixture: GaussianMixture | None = None

    @abstractmethod
    def points(self, n: int, generator: Generator) -> Tensor:
        """Return points (n, 2), from a generator on the CPU."""

    def supports(self, x: Tensor) -> Tensor | None:
        """Return whether the density is positive at x (n, 2), as (n,) bool, or None if it is positive everywhere."""
        del x
        return None

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, None]:
        return self.points(n, on_host(generator)), None

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.points(n, generator)


@validated
@dataclass(frozen=True)
class Ring(Points):
    """Equal Gaussians on a circle; the exact velocity is known (analytic.ring)."""

    modes: PositiveInt = 8
    radius: PositiveFloat = 2.0
    mode_std: PositiveFloat = 0.3

    @property
    def mixture(self) -> GaussianMixture:  # type: ignore[override]
        return ring(self.modes, self.radius, self.mode_std)

    def points(self, n: int, generator: Generator) -> Tensor:
        return self.mixture.sample(n, generator)


@validated
@dataclass(frozen=True)
class Checkerboard(Points):
    """Uniform on the dark squares of a board of cells x cells, side 4, centred."""

    cells: Annotated[int, Field(ge=2, multiple_of=2)] = 4

    def points(self, n: int, generator: Generator) -> Tensor:
        within = torch.rand(n, 2, generator=generator)
        row = torch.randint(self.cells, (n,), generator=generator)
        dark = torch.randint(self.cells // 2, (n,), generator=generator)
        cell = torch.stack([2 * dark + row % 2, row], 1)
        return 4 * (cell + within) / self.cells - 2

    def supports(self, x: Tensor) -> Tensor:
        cell = ((x + 2) * self.cells / 4).floor()
        on_board = ((cell >= 0) & (cell < self.cells)).all(1)
        return on_board & (cell.sum(1) % 2 == 0)


@validated
@dataclass(frozen=True)
class TwoMoons(Points):
    """Two interleaved half circles, scaled to about [-2, 2]."""

    noise: NonNegativeFloat = 0.05

    def points(self, n: int, generator: Generator) -> Tensor:
        angle = math.pi * torch.rand(n, generator=generator)
        side = 2.0 * torch.randint(2, (n,), generator=generator) - 1
        moons = torch.stack([side * angle.cos() + (1 - side) / 2 - 0.5, side * angle.sin() + (1 - side) / 4 - 0.25], 1)
        return 1.3 * (moons + self.noise * torch.randn(n, 2, generator=generator))


@validated
@dataclass(frozen=True)
class Spirals(Points):
    """Two arms of an Archimedean spiral, radius up to 2."""

    turns: PositiveFloat = 1.5
    noise: NonNegativeFloat = 0.05

    def points(self, n: int, generator: Generator) -> Tensor:
        fraction = torch.rand(n, generator=generator).sqrt()
        arm = math.pi * torch.randint(2, (n,), generator=generator)
        angle = 2 * math.pi * self.turns * fraction + arm
        spiral = 2 * fraction[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return spiral + self.noise * torch.randn(n, 2, generator=generator)
