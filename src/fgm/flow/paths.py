"""Affine paths between data (t = 0) and noise (t = 1).

    x_t     = alpha_t x_0 + sigma_t eps           eps ~ N(0, I), fresh
    c       = alpha'_t x_0 + sigma'_t eps         conditional velocity
    v(x_t)  = E[c | x_t]                          marginal velocity
    kappa_t = alpha_t sigma'_t - alpha'_t sigma_t  > 0

(x_0, eps) -> (x_t, c) is linear with determinant kappa_t. Its inverse, before or after E[. | x_t], turns a velocity into
predictions of data, noise and score:

    x_0   = (sigma'_t x_t - sigma_t v) / kappa_t
    eps   = (alpha_t v - alpha'_t x_t) / kappa_t
    score = -eps / sigma_t

Here x_0 and eps mean E[x_0 | x_t] and E[eps | x_t] (Tweedie). Every path has alpha_0 = 1, sigma_0 = 0.
Shapes: x_t, x_0, eps, v are (batch, *dims); t is (batch,) or a scalar tensor, in [0, 1].
"""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from pydantic import PositiveFloat
from torch import Tensor

from fgm.utils.validation import validated


class Coefficients(NamedTuple):
    """alpha_t, sigma_t and their time derivatives, each of t's shape."""

    alpha: Tensor
    sigma: Tensor
    alpha_dot: Tensor
    sigma_dot: Tensor

    @property
    def kappa(self) -> Tensor:
        return self.alpha * self.sigma_dot - self.alpha_dot * self.sigma


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """Append axes of length one to t, (batch,) or (), so that it broadcasts over x (batch, *dims)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


class ProbabilityPath(ABC):
    """x_t = alpha_t x_0 + sigma_t eps; a subclass defines the four coefficients.

    Attributes:
        t_min: time at which an ODE solver stops; above 0 if a coefficient is infinite at 0.
    """

    t_min: ClassVar[float] = 0.0

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients: ...

    def at(self, t: Tensor, x: Tensor) -> Coefficients:
        """Return the coefficients at t, broadcastable over x."""
        return self.coefficients(expand_like(t, x))

    def interpolate(self, x_0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and the conditional velocity c."""
        alpha, sigma, alpha_dot, sigma_dot = self.at(t, x_0)
        return alpha * x_0 + sigma * eps, alpha_dot * x_0 + sigma_dot * eps

    def prior(self, z: Tensor) -> Tensor:
        """Return the start of a trajectory, sigma_1 z for z ~ N(0, I)."""
        return self.coefficients(z.new_ones(())).sigma * z

    def x_0_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        k = self.at(t, x_t)
        return (k.sigma_dot * x_t - k.sigma * v) / k.kappa

    def eps_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        k = self.at(t, x_t)
        return (k.alpha * v - k.alpha_dot * x_t) / k.kappa

    def score_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return -self.eps_from_velocity(x_t, v, t) / self.at(t, x_t).sigma

    def velocity_from_x_0(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        k = self.at(t, x_t)
        return (k.sigma_dot * x_t - k.kappa * x_0) / k.sigma

    def velocity_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        k = self.at(t, x_t)
        return (k.alpha_dot * x_t + k.kappa * eps) / k.alpha

    def velocity_from_score(self, x_t: Tensor, score: Tensor, t: Tensor) -> Tensor:
        return self.velocity_from_eps(x_t, -self.at(t, x_t).sigma * score, t)


def describe(path: ProbabilityPath) -> str:
    """Return the class, with its parameters if it has any."""
    parameters = ", ".join(f"{name}={value}" for name, value in vars(path).items())
    return type(path).__name__ + (f"({parameters})" if parameters else "")


def override_of(path: ProbabilityPath) -> str:
    """Return the override of a config that chooses this path."""
    kind = type(path)
    if kind.__module__ != ProbabilityPath.__module__:
        return f"path._target_={kind.__module__}.{kind.__qualname__}"
    word = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Path")).lower()
    return " ".join([f"path={word}", *(f"path.{name}={value}" for name, value in vars(path).items())])


def same_path(a: ProbabilityPath, b: ProbabilityPath) -> bool:
    """Compare coefficients at seven times, since two objects of a user's class may be one path."""
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, device="cpu")
    return all(torch.allclose(x, y) for x, y in zip(a.coefficients(t), b.coefficients(t), strict=True))


@validated
@dataclass(frozen=True)
class RectifiedPath(ProbabilityPath):
    """alpha = 1 - t, sigma = t (Liu et al., arXiv 2209.03003; the path of FGM and of Stable Diffusion 3)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)


@validated
@dataclass(frozen=True)
class TrigonometricPath(ProbabilityPath):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Albergo and Vanden-Eijnden, arXiv 2209.15571)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        half_pi = math.pi / 2
        cos, sin = torch.cos(half_pi * t), torch.sin(half_pi * t)
        return Coefficients(cos, sin, -half_pi * sin, half_pi * cos)


@validated
@dataclass(frozen=True)
class VariancePreservingPath(ProbabilityPath):
    """alpha = exp(-B/2), sigma^2 = 1 - alpha^2, B = beta_min t + (beta_max - beta_min) t^2 / 2.

    (Song et al., arXiv 2011.13456.) sigma' grows like t^(-1/2) at the data end, hence t_min.
    """

    t_min: ClassVar[float] = 1e-3
    beta_min: PositiveFloat = 0.1
    beta_max: PositiveFloat = 20.0

    def coefficients(self, t: Tensor) -> Coefficients:
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        integral = t * (beta + self.beta_min) / 2
        alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
        return Coefficients(alpha, sigma, -beta / 2 * alpha, beta / 2 * alpha**2 / sigma)


@validated
@dataclass(frozen=True)
class VarianceExplodingPath(ProbabilityPath):
    """alpha = 1, sigma = sigma_max t (Karras et al., arXiv 2206.00364, with their time in units of sigma_max)."""

    sigma_max: PositiveFloat = 80.0

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(one, self.sigma_max * t, 0 * one, self.sigma_max * one)
