"""Exact marginals of Gaussian and Gaussian-mixture data on any affine path.

For x_0 ~ sum_k w_k N(m_k, s_k^2 I), the law of x_t is again a mixture, with moments

    mean_k = alpha_t m_k,     var_k = alpha_t^2 s_k^2 + sigma_t^2,

and the marginal velocity is the responsibility-weighted mean of the components' (Gaussian regression of c on x_t):

    v(x, t) = sum_k r_k(x) ( alpha'_t m_k + (alpha_t alpha'_t s_k^2 + sigma_t sigma'_t) / var_k (x - mean_k) )
    r_k(x)  = softmax_k( log w_k + log N(x; mean_k, var_k I) )

A linear generator x_0 = a z + b is the case of one component, N(b, a^2): this is how the tests reach the exact
gradient that FGM's loss must have. With a matrix W in place of a, and S = W W^T,

    v(x, t) = alpha'_t b + (alpha_t alpha'_t S + sigma_t sigma'_t I) (alpha_t^2 S + sigma_t^2 I)^-1 (x - alpha_t b)

Shapes: x is (batch, d); t is (batch,) or a scalar tensor; results are (batch, d), log-densities (batch,).
"""

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor

from fgm.flow.paths import ProbabilityPath, expand_like
from fgm.utils.validation import validated


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic Gaussians: weights (k,) summing to one, means (k, d), stds (k,), all of one dtype."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def log_joint(self, x: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
        """Return log w_k + log N(x; mean_k, var_k I), (batch, k)."""
        k = path.coefficients(expand_like(t, x))
        variance = k.alpha**2 * self.stds**2 + k.sigma**2
        distance = (x[:, None] - expand_like(k.alpha, x[:, None]) * self.means).square().sum(-1)
        return self.weights.log() - distance / (2 * variance) - x.shape[1] / 2 * torch.log(2 * math.pi * variance)

    def log_density(self, x: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
        """Return log p_t(x), (batch,); at t = 0 that of the data."""
        return self.log_joint(x, t, path).logsumexp(1)

    def velocity(self, x: Tensor, t: Tensor, path: ProbabilityPath) -> Tensor:
        """Return v(x, t) = E[c | x_t = x], (batch, d)."""
        k = path.coefficients(expand_like(t, x[:, None]))
        std = self.stds[:, None]
        slope = (k.alpha * k.alpha_dot * std**2 + k.sigma * k.sigma_dot) / (k.alpha**2 * std**2 + k.sigma**2)
        components = k.alpha_dot * self.means + slope * (x[:, None] - k.alpha * self.means)
        return (self.log_joint(x, t, path).softmax(1)[..., None] * components).sum(1)

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw n independent points, (n, d)."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.stds[component, None] * noise


def gaussian(mean: Tensor, std: Tensor) -> GaussianMixture:
    """Return N(mean, std^2 I) as a mixture of one: mean (d,), std a scalar tensor; differentiable in both."""
    return GaussianMixture(mean.new_ones(1), mean[None], std[None])


def affine_velocity(x: Tensor, t: Tensor, path: ProbabilityPath, weight: Tensor, bias: Tensor) -> Tensor:
    """Return v(x, t) for x_0 = W z + b, z ~ N(0, I): weight W (d, d), bias b (d,); differentiable in both."""
    k = path.coefficients(expand_like(t, x[..., None]))
    covariance, one = weight @ weight.T, torch.eye(len(bias), dtype=x.dtype, device=x.device)
    joint = k.alpha * k.alpha_dot * covariance + k.sigma * k.sigma_dot * one
    noisy = k.alpha**2 * covariance + k.sigma**2 * one
    centred = x[..., None] - k.alpha * bias[:, None]
    return (k.alpha_dot * bias[:, None] + joint @ torch.linalg.solve(noisy, centred))[..., 0]


@validated
def ring(modes: PositiveInt = 8, radius: float = 2.0, std: PositiveFloat = 0.1) -> GaussianMixture:
    """Return equal Gaussians, equally spaced on a circle in the plane."""
    angle = torch.arange(modes) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(torch.full((modes,), 1 / modes), means, torch.full((modes,), std))
