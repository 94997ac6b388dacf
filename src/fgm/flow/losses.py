"""Flow matching and Flow Generator Matching, as pure functions of tensors.

With u the teacher's velocity, v the online velocity and c the conditional velocity, all at (x_t, t), where x_t comes
from the generator's sample (arXiv 2410.19310, eq. 4.11 and 4.12):

    L_1 = |u - v|^2
    L_2 = 2 <u - v, v - c>
    L   = lambda_1 L_1 + L_2

The quantity to minimise is E|u - v_theta|^2 with v_theta = E[c | x_t], which depends on the generator. By the flow
product identity E[f(x_t) . v_theta(x_t)] = E[f(x_t) . c], the gradient of E[L_1 + L_2], taken through x_t and c with
the weights inside u and v held fixed, is the gradient of that quantity, as long as v = v_theta.

    lambda_1 = 1     the exact gradient; then L = |u - c|^2 - |v - c|^2
    lambda_1 = 0     what FGM uses on CIFAR-10
    lambda_1 = 2 - 2 alpha     SiD with its alpha (arXiv 2404.04057); its best runs have alpha = 1.2
    u, v detached, lambda_1 = 0     the DMD direction, -2 alpha'_t (u - v) in x_0 (arXiv 2311.18828)
    u detached     no backward pass through the teacher, of the ten passes of a cycle; x_0 is reached through v and c, as in
                   LightX2V's SGMD. Only the gradient's part (du/dx_t)^T 2 (lambda_1 (u - v) + v - c) is missing

To mix a share s of v into u (DMDR's borrowed overlap, in velocities) gives no new member: u - v becomes (1 - s)(u - v), and
L is (1 - s) times the L of lambda_1 (1 - s).

Two terms use real images. RealUID (arXiv 2509.22459, section 3) mixes them into flow matching by two coefficients a, b
in (0, 1]; with p_theta, p the laws of x_t from generated and from real x_0, and u the real one's velocity,

    min over theta, max over v of   E_theta[ <u - v, a (u + v) - 2 b c> ] + E[ <u - v, (1 - a) (u + v) - 2 (1 - b) c> ]

whose inner optimum and remaining objective are, writing both as integrals over x_t and completing the square,

    v*  = (b p_theta v_theta + (1 - b) p u) / (a p_theta + (1 - a) p)
    J   = integral of (a p_theta + (1 - a) p) |u - v*|^2

so that v* = u and J = 0 where the generator's law is the data's; a = b = 1 is FGM. Only its first mean moves theta.

Adversarial terms (arXiv 1406.2661; softplus as in DMD2, arXiv 2405.14867) read a discriminator's logits l at x_t, whose
optimum is log p / p_theta; a real image costs softplus(-l), a generated one softplus(l), and the generator pays
softplus(-l).

The VALUE of L is not progress: with v exact, E[L_2] = 0 and single batches of it are negative half of the time.
Watch |u - v|^2 and the samples.

Shapes: every tensor (batch, *dims), every result (batch,). Norms and products are MEANS over dims, so that a number
does not change its scale with the resolution.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fgm.flow.paths import ProbabilityPath

Detach = bool | Literal["teacher"]  # which velocities are constants: neither, both, or u alone
Weighting = Callable[..., Tensor]  # w(path, t), or a normalizer n(x_0, teacher_x_0, online_x_0)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b>, the mean over dims of the product, (batch,)."""
    return (a * b).flatten(1).mean(1)


def squared_norm(a: Tensor) -> Tensor:
    return inner(a, a)


def flow_matching(v: Tensor, c: Tensor) -> Tensor:
    """Return |v - c|^2, whose minimiser over v(x_t) is E[c | x_t] (arXiv 2210.02747), (batch,)."""
    return squared_norm(v - c)


def fgm_terms(u: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return L_1 and L_2 (eq. 4.11, 4.12), each (batch,)."""
    return squared_norm(u - v), 2 * inner(u - v, v - c)


def detached(u: Tensor, v: Tensor, detach: Detach) -> tuple[Tensor, Tensor]:
    return u.detach() if detach else u, v.detach() if detach is True else v


def fgm(u: Tensor, v: Tensor, c: Tensor, lambda_1: float = 1.0, detach: Detach = False) -> Tensor:
    """Return lambda_1 L_1 + L_2, (batch,). With detach = True only the gradient of L_2 through c remains."""
    u, v = detached(u, v, detach)
    l_1, l_2 = fgm_terms(u, v, c)
    return lambda_1 * l_1 + l_2


def realuid_matching(v: Tensor, c: Tensor, a: float, b: float) -> Tensor:
    """Return the online network's a |v - (b/a) c|^2: with (a, b) on generated, (1 - a, 1 - b) on real x_t, (batch,).

    For a = 0 return the limit up to a constant, -2 b <v, c>.
    """
    return a * flow_matching(v, b / a * c) if a else -2 * b * inner(v, c)


def realuid(
    u: Tensor, v: Tensor, c: Tensor, a: float, b: float, lambda_1: float = 1.0, detach: Detach = False
) -> Tensor:
    """Return the generator's lambda_1 a |u - v|^2 + 2 <u - v, a v - b c>, (batch,).

    For lambda_1 = 1 it equals a |u - (b/a) c|^2 - a |v - (b/a) c|^2 and its mean has the gradient of J; a = b = 1 is fgm.
    """
    u, v = detached(u, v, detach)
    return lambda_1 * a * squared_norm(u - v) + 2 * inner(u - v, a * v - b * c)


def real_loss(logits: Tensor) -> Tensor:
    """Return softplus(-l), mean over a sample's logits: (batch, k) -> (batch,); also the generator's loss."""
    return softplus(-logits).flatten(1).mean(1)


def fake_loss(logits: Tensor) -> Tensor:
    """Return softplus(l), mean over a sample's logits: (batch, k) -> (batch,)."""
    return softplus(logits).flatten(1).mean(1)


def r1(logits: Tensor, *inputs: Tensor) -> Tensor:
    """Return |grad l|^2 of a sample's mean logit by its inputs, summed over their dims (arXiv 1801.04406), (batch,).

    inputs: (batch, *dims) with requires_grad; only row i of them enters row i of logits. The result has a graph.
    """
    gradients = torch.autograd.grad(logits.flatten(1).mean(1).sum(), inputs, create_graph=True)
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)


# Weightings w(t): functions of the path and t, (batch,) -> (batch,).


def velocity_weight(path: ProbabilityPath, t: Tensor) -> Tensor:
    """Return 1: the loss in velocities, as in the paper."""
    del path
    return torch.ones_like(t)


def x_0_weight(path: ProbabilityPath, t: Tensor) -> Tensor:
    """Return (sigma/kappa)^2: the loss between x_0-predictions, since u - v = -(kappa/sigma)(x_0^u - x_0^v)."""
    k = path.coefficients(t)
    return (k.sigma / k.kappa) ** 2


def sid_dit_weight(path: ProbabilityPath, t: Tensor) -> Tensor:
    """Return (1 - t) times the x_0 weight, with which SiD-DiT trains Stable Diffusion 3 (arXiv 2509.25127)."""
    return (1 - t) * x_0_weight(path, t)


# Normalizers: a scale per sample, without gradient, from three x_0 of shape (batch, *dims), -> (batch,).


def no_normalizer(x_0: Tensor, teacher_x_0: Tensor, online_x_0: Tensor) -> Tensor:
    """Return 1."""
    del teacher_x_0, online_x_0
    return x_0.new_ones(len(x_0))


def dmd_normalizer(x_0: Tensor, teacher_x_0: Tensor, online_x_0: Tensor, floor: float = 1e-5) -> Tensor:
    """Return 1 / max(floor, mean|x_0 - x_0^u|), as in DMD2 and SiD, whose floor is 1e-5.

    A higher one, 0.1 in CDM and LightX2V, stops the weight from growing where generator and teacher nearly agree.
    """
    del online_x_0
    return 1 / (x_0 - teacher_x_0).detach().abs().flatten(1).mean(1).clamp_min(floor)


def unit_normalizer(x_0: Tensor, teacher_x_0: Tensor, online_x_0: Tensor, floor: float = 1e-5) -> Tensor:
    """Return 1 / max(floor, |x_0^u - x_0^v|), which turns the squared distance into a distance (arXiv 2509.22459, A.4)."""
    del x_0
    return 1 / squared_norm(teacher_x_0 - online_x_0).detach().sqrt().clamp_min(floor)
