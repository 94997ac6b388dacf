"""Flow matching and Flow Generator Matching, as pure functions of tensors.

With u the teacher's velocity, v the online velocity and c the conditional velocity, all at (x_t, t), where x_t comes
from the generator's sample (arXiv 2410.19310, eq. 4.11 and 4.12):

    L_1 = |u - v|^2
    L_2 = 2 <u - v, v - c>
    L   = lambda_1 L_1 + L_2

The quantity we want small is E|u - v_theta|^2 with v_theta = E[c | x_t], which depends on the generator. By the flow
product identity E[f(x_t) . v_theta(x_t)] = E[f(x_t) . c], the gradient of E[L_1 + L_2], taken through x_t and c with
the weights inside u and v held fixed, is the gradient of that quantity, as long as v = v_theta.

    lambda_1 = 1     the exact gradient; then L = |u - c|^2 - |v - c|^2
    lambda_1 = 0     what FGM uses on CIFAR-10
    lambda_1 = 2 - 2 alpha     SiD with its alpha (arXiv 2404.04057); its best runs have alpha = 1.2
    u, v detached, lambda_1 = 0     the DMD direction, -2 alpha'_t (u - v) in x_0 (arXiv 2311.18828)

The VALUE of L is not progress: with v exact, E[L_2] = 0 and single batches of it are negative half of the time.
Watch |u - v|^2 and the samples.

Shapes: every tensor (batch, *dims), every result (batch,). Norms and products are MEANS over dims, so that a number
does not change its scale with the resolution.
"""

import torch
from torch import Tensor

from fgm.paths import Path


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>: mean over dims of the product, (batch,)."""
    return (a * b).flatten(1).mean(1)


def squared_norm(a: Tensor) -> Tensor:
    return inner(a, a)


def flow_matching(v: Tensor, c: Tensor) -> Tensor:
    """|v - c|^2, whose minimiser over v(x_t) is E[c | x_t] (arXiv 2210.02747)."""
    return squared_norm(v - c)


def fgm_terms(u: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """L_1 and L_2 (eq. 4.11, 4.12)."""
    return squared_norm(u - v), 2 * inner(u - v, v - c)


def fgm(u: Tensor, v: Tensor, c: Tensor, lambda_1: float = 1.0, detach: bool = False) -> Tensor:
    """lambda_1 L_1 + L_2. With detach, nothing flows through the networks, and only L_2's path through c is left."""
    if detach:
        u, v = u.detach(), v.detach()
    l_1, l_2 = fgm_terms(u, v, c)
    return lambda_1 * l_1 + l_2


def lambda_1_from_alpha(alpha: float) -> float:
    """SiD's alpha as a weight of L_1: 2 SiD(alpha) = (2 - 2 alpha) L_1 + L_2, up to SiD's time weighting."""
    return 2 - 2 * alpha


# Weightings w(t): functions of the path and t, (batch,) -> (batch,).


def velocity_weight(path: Path, t: Tensor) -> Tensor:
    """1: the loss as the paper writes it, in velocities."""
    del path
    return torch.ones_like(t)


def x_0_weight(path: Path, t: Tensor) -> Tensor:
    """(sigma/kappa)^2: the same loss between x_0-predictions, since u - v = -(kappa/sigma)(x_0^u - x_0^v)."""
    k = path.coefficients(t)
    return (k.sigma / k.kappa) ** 2


def sid_dit_weight(path: Path, t: Tensor) -> Tensor:
    """(1 - t) on x_0-predictions, as SiD-DiT trains Stable Diffusion 3 (arXiv 2509.25127)."""
    return (1 - t) * x_0_weight(path, t)


# Normalisers: a scale for each sample, without gradient, from the three x_0 at hand, (batch, *dims) -> (batch,).


def no_normaliser(x_0: Tensor, teacher_x_0: Tensor, online_x_0: Tensor) -> Tensor:
    """1."""
    del teacher_x_0, online_x_0
    return x_0.new_ones(len(x_0))


def dmd_normaliser(x_0: Tensor, teacher_x_0: Tensor, online_x_0: Tensor) -> Tensor:
    """1 / mean|x_0 - x_0^u|, as DMD2 and SiD scale their losses; floored as SiD does."""
    del online_x_0
    return 1 / (x_0 - teacher_x_0).detach().abs().flatten(1).mean(1).clamp_min(1e-5)


def unit_normaliser(x_0: Tensor, teacher_x_0: Tensor, online_x_0: Tensor) -> Tensor:
    """1 / |x_0^u - x_0^v|: a distance in place of its square (arXiv 2509.22459, A.4)."""
    del x_0
    return 1 / squared_norm(teacher_x_0 - online_x_0).detach().sqrt().clamp_min(1e-5)
