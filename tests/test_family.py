"""The method's family as config nouns: each is the objective whose name it bears."""

import pytest
import torch
from hydra.utils import instantiate
from torch.testing import assert_close

from fgm.cli.config import read_recipe
from fgm.flow import losses
from fgm.flow.paths import RectifiedPath
from fgm.utils.random import keyed_generator

pytestmark = pytest.mark.usefixtures("float64")
PATH = RectifiedPath()


def terms(method: str, x_0: torch.Tensor, t: torch.Tensor, u: torch.Tensor, v: torch.Tensor, eps: torch.Tensor):
    """The weighted loss of a noun, (n,), and the x_0-predictions of u and v."""
    node = read_recipe("digits_fgm", [f"method={method}"])["method"]
    x_t, c = PATH.interpolate(x_0, eps, t)
    x_0_u, x_0_v = (PATH.x_0_from_velocity(x_t, velocity, t).detach() for velocity in (u, v))
    with torch.no_grad():
        scale = instantiate(node["weighting"])(PATH, t) * instantiate(node["normalizer"])(x_0, x_0_u, x_0_v)
    return scale * losses.fgm(u, v, c, node["lambda_1"], node["detach"]), x_0_u, x_0_v


def draws(n: int = 6, d: int = 5) -> tuple[torch.Tensor, ...]:
    noise = keyed_generator("family", index=0)
    x_0, u, v, eps = (torch.randn(n, d, generator=noise) for _ in range(4))
    return x_0, torch.rand(n, generator=noise).clamp(0.1, 0.9), u, v, eps


def test_sid_is_twice_sids_integrand_at_alpha_1_2() -> None:
    """2 <D, (x_0^u - x_0) - alpha D>, D = x_0^u - x_0^v, over mean|x_0 - x_0^u| (arXiv 2404.04057)."""
    x_0, t, u, v, eps = draws()
    loss, x_0_u, x_0_v = terms("sid", x_0, t, u, v, eps)
    delta = x_0_u - x_0_v
    integrand = (delta * ((x_0_u - x_0) - 1.2 * delta)).mean(1) / (x_0 - x_0_u).abs().mean(1)
    assert_close(loss, 2 * integrand)


def test_dmd_moves_x_0_along_the_difference_of_the_predictions() -> None:
    """grad of x_0 = 2 t (x_0^v - x_0^u) / mean|x_0 - x_0^u|, DMD2's but for 2 t, and a mean over dims."""
    x_0, t, u, v, eps = draws()
    x_0 = x_0.requires_grad_()
    loss, x_0_u, x_0_v = terms("dmd", x_0, t, u, v, eps)
    (gradient,) = torch.autograd.grad(loss.sum(), x_0)
    scale = 2 * t / (x_0 - x_0_u).abs().mean(1) / x_0.shape[1]
    assert_close(gradient, scale.detach()[:, None] * (x_0_v - x_0_u))
