"""Where guidance stands in a distillation: in neither network, in the teacher, or in both at the teacher's scale."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import setting

from fgm.flow import losses
from fgm.networks import VelocityModel
from fgm.networks.guidance import ClassifierFreeGuidance, Guidance, apply_guidance, unwrap_guidance
from fgm.networks.mlp import VelocityMLP
from fgm.training.distillation import Distillation

SCALE = 3.0


def network(seed: int) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=2, width=16, depth=1, num_classes=3)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(6, 2, generator=noise), torch.rand(6, generator=noise), torch.arange(6) % 3


def module(guidance: Guidance) -> Distillation:
    return Distillation(setting(teacher=ClassifierFreeGuidance(network(1), SCALE)), t_star=0.9, guidance=guidance)


def by_hand(net: VelocityModel, x_t: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
    v_null = net(x_t, t, torch.full_like(labels, 3))
    return v_null + scale * (net(x_t, t, labels) - v_null)


@pytest.mark.parametrize(
    "guidance, teacher, online", [("none", 1, 1), ("teacher", SCALE, 1), ("long_and_short", SCALE, SCALE)]
)
def test_each_variant_guides_what_it_says(guidance: Guidance, teacher: float, online: float) -> None:
    m, (x_t, t, labels) = module(guidance), batch()
    u, v = (net(x_t, t, labels) for net in m.velocities())
    assert_close(u, by_hand(unwrap_guidance(m.teacher), x_t, t, labels, teacher))
    assert_close(v, by_hand(m.online, x_t, t, labels, online))


@pytest.mark.parametrize("guidance", ["teacher", "long_and_short"])
def test_the_online_network_is_fitted_under_its_guidance(guidance: Guidance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the online turn is |v - c|^2 of the velocity that the generator turn evaluates, in one call each."""
    m, (x_0, _, labels) = module(guidance), batch()
    descended: list[Tensor] = []
    monkeypatch.setattr(m, "descents", [lambda _, loss: descended.append(loss)] * 2)
    monkeypatch.setattr(Distillation, "global_rank", 0)
    sizes: list[int] = []
    m.online.register_forward_hook(lambda net, arguments, output: sizes.append(len(output)))
    m.online_turn(x_0, labels, 0)
    m.generator_turn(x_0.requires_grad_(), labels, 0)
    assert sizes == [12 if guidance == "long_and_short" else 6] * 2
    x_t, c, t = m.setting.noisy(x_0.detach(), m.online_time, m.noise("online", 0))
    scale = SCALE if guidance == "long_and_short" else 1.0
    expected = losses.flow_matching(by_hand(m.online, x_t, t, labels, scale), c).mean()
    assert_close(descended[0], expected)
    for a, b in zip(gradients(m.online, descended[0]), gradients(m.online, expected), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)


def gradients(net: VelocityModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="takes its scale from the teacher"):
        apply_guidance("long_and_short", network(1), network(2))
    unknown: Any = "long"
    with pytest.raises(ValueError, match="is none of none, teacher, long_and_short"):
        apply_guidance(unknown, network(1), network(2))
