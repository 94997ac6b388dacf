"""Timestep densities: how often training looks at each t in (0, 1).

Each density samples from an explicit generator and states its log-density. Formulas are Esser et al.,
arXiv 2403.03206 (Stable Diffusion 3), section 3.1, whose time has the same direction as ours:

    logit-normal   logit t ~ N(mean, std^2)
    mode           t = 1 - u - s (cos^2(pi u / 2) - 1 + u),      u uniform,  -1 <= s <= 2 / (pi - 2)
    cosine map     t = 1 - 1 / (tan(pi u / 2) + 1),              u uniform;  p(t) = 2 / (pi (1 - 2t + 2t^2))
    shift          t' = s t / (1 + (s - 1) t),                   t from any density; s > 1 favours noise

A density may change during the training: at(progress) is the one to draw from.

Samples are clamped to [EDGE, 1 - EDGE], where every path's coefficients are finite.
Shapes: sample(n) is (n,); log_density keeps t's shape.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Generator, Tensor

from fgm.utils.validation import validated

EDGE = 1e-5


class TimestepDensity(ABC):
    """A probability density on (0, 1)."""

    @abstractmethod
    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor: ...

    @abstractmethod
    def log_density(self, t: Tensor) -> Tensor: ...

    def at(self, progress: float) -> "TimestepDensity":
        """Return the density after this share of the training, in [0, 1]."""
        del progress
        return self

    def sample(self, n: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """n independent times, on the generator's device."""
        return self.draw(n, generator, dtype).clamp(EDGE, 1 - EDGE)


def uniform(n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(n, generator=generator, dtype=dtype, device=generator.device)


@validated
@dataclass(frozen=True)
class Uniform(TimestepDensity):
    """Uniform on (low, high)."""

    low: Annotated[float, Field(ge=0, lt=1)] = 0.0
    high: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Uniform: low = {self.low} must be below high = {self.high}")

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        return self.low + (self.high - self.low) * uniform(n, generator, dtype)

    def log_density(self, t: Tensor) -> Tensor:
        inside = (self.low <= t) & (t <= self.high)
        return torch.full_like(t, -math.log(self.high - self.low)).where(inside, -torch.inf)


@validated
@dataclass(frozen=True)
class LogitNormal(TimestepDensity):
    """logit t ~ N(mean, std^2); mean > 0 favours noise."""

    mean: float = 0.0
    std: PositiveFloat = 1.0

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        normal = torch.randn(n, generator=generator, dtype=dtype, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)

    def log_density(self, t: Tensor) -> Tensor:
        standard = (torch.logit(t) - self.mean) / self.std
        return -(standard**2) / 2 - torch.log(t * (1 - t)) - math.log(self.std * math.sqrt(2 * math.pi))


@validated
@dataclass(frozen=True)
class Mode(TimestepDensity):
    """Mass around t = 1/2 for scale > 0, at both ends for scale < 0; scale = 0 is uniform."""

    scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29

    def time_of(self, u: Tensor) -> Tensor:
        return 1 - u - self.scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)

    def slope(self, u: Tensor) -> Tensor:
        """Return dt/du, negative on (0, 1)."""
        return -1 - self.scale * (1 - math.pi / 2 * torch.sin(math.pi * u))

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        return self.time_of(uniform(n, generator, dtype))

    def log_density(self, t: Tensor) -> Tensor:
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):  # bisection: time_of decreases, 2^-60 is below float64's resolution
            middle = (low + high) / 2
            too_late = self.time_of(middle) > t
            low, high = torch.where(too_late, middle, low), torch.where(too_late, high, middle)
        return -torch.log(-self.slope((low + high) / 2))


@validated
@dataclass(frozen=True)
class CosMap(TimestepDensity):
    """The density under which the rectified path sees the log-SNR of a cosine schedule."""

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        return 1 - 1 / (torch.tan(math.pi / 2 * uniform(n, generator, dtype)) + 1)

    def log_density(self, t: Tensor) -> Tensor:
        return math.log(2 / math.pi) - torch.log(1 - 2 * t + 2 * t**2)


@validated
@dataclass(frozen=True)
class Beta(TimestepDensity):
    """Beta(a, b): a > b favours noise."""

    a: PositiveFloat = 1.0
    b: PositiveFloat = 1.0

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        concentration = torch.tensor([self.a, self.b], dtype=dtype, device=generator.device).expand(n, 2)
        return torch._sample_dirichlet(concentration, generator=generator)[:, 0]

    def log_density(self, t: Tensor) -> Tensor:
        log_beta = math.lgamma(self.a) + math.lgamma(self.b) - math.lgamma(self.a + self.b)
        return (self.a - 1) * torch.log(t) + (self.b - 1) * torch.log1p(-t) - log_beta


@validated
@dataclass(frozen=True)
class Shifted(TimestepDensity):
    """base seen through t' = shift t / (1 + (shift - 1) t), the resolution shift of Stable Diffusion 3."""

    base: TimestepDensity
    shift: PositiveFloat = 3.0

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        return shift_time(self.base.draw(n, generator, dtype), self.shift)

    def at(self, progress: float) -> TimestepDensity:
        return replace(self, base=self.base.at(progress))

    def log_density(self, t: Tensor) -> Tensor:
        unshifted = shift_time(t, 1 / self.shift)
        return self.base.log_density(unshifted) + 2 * torch.log1p((self.shift - 1) * unshifted) - math.log(self.shift)


@validated
@dataclass(frozen=True)
class Annealed(TimestepDensity):
    """From `start` to `end`: the mixture (1 - w) start + w end with w = (1 - cos(pi min(1, progress / until))) / 2.

    DMDR (github.com/vvvvvjdy/dmdr) moves the parameters of a Beta density from (4, 1.5) to (1, 1) by the same cosine, over the
    first half of its training.
    """

    start: TimestepDensity
    end: TimestepDensity
    until: Annotated[float, Field(gt=0, le=1)] = 0.5
    progress: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def weight(self) -> float:
        return (1 - math.cos(math.pi * min(1.0, self.progress / self.until))) / 2

    def at(self, progress: float) -> TimestepDensity:
        return replace(self, progress=progress)

    def draw(self, n: int, generator: Generator, dtype: torch.dtype) -> Tensor:
        late = uniform(n, generator, dtype) < self.weight
        return torch.where(late, self.end.draw(n, generator, dtype), self.start.draw(n, generator, dtype))

    def log_density(self, t: Tensor) -> Tensor:
        log_1_w, log_w = torch.tensor([1 - self.weight, self.weight], dtype=t.dtype, device=t.device).log()
        return torch.logaddexp(log_1_w + self.start.log_density(t), log_w + self.end.log_density(t))


def shift_time(t: Tensor, shift: float) -> Tensor:
    """s t / (1 + (s - 1) t); its inverse is the shift by 1/s."""
    return shift * t / (1 + (shift - 1) * t)
