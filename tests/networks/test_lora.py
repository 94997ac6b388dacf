"""Adapters on a shared network have the gradients of separate networks, with and without gradient checkpointing."""

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import CheckpointError
from toy_trainings import CONFIG, LINEAR, pieces, run, weights

from fgm.data import Data
from fgm.flow import losses
from fgm.flow.paths import RectifiedPath
from fgm.networks import VelocityModel
from fgm.networks.generator import FewStepGenerator
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.networks.lora import LoRA, LoRALinear, LoRAModel
from fgm.networks.mlp import VelocityMLP
from fgm.networks.mmdit import CaptionedMMDiT
from fgm.training.discriminator import GANTerm
from fgm.training.distillation import Distillation
from fgm.training.evaluation import EvaluationCallback
from fgm.training.memory import VelocityAt, two_stage
from fgm.training.optim import adamw

PATH = RectifiedPath()


@pytest.fixture
def stable_diffusion() -> CaptionedMMDiT:
    """A tiny SD3Transformer2DModel in float64."""
    torch.manual_seed(0)
    net = CaptionedMMDiT(size=4, channels=2, patch=2, width=16, depth=2, heads=2, words=9, length=3, text_width=16)
    return net.double()


def filled(adapted: LoRAModel, seed: int) -> LoRAModel:
    """Give B random values, so that the adapter has an effect."""
    noise = torch.Generator().manual_seed(seed)
    for part in adapted.modules():
        if isinstance(part, LoRALinear):
            up = part.lora_B.weight
            up.data.copy_(0.3 * torch.randn(up.shape, generator=noise, dtype=up.dtype))
    return adapted


def merged(adapted: LoRAModel) -> VelocityModel:
    """Return a separate network with weights W + s B A."""
    net = deepcopy(adapted.shared.net)
    for module in net.modules():
        module._forward_hooks.clear()
    for name, part in adapted.adapter.named_modules():
        if isinstance(part, LoRALinear):
            net.get_parameter(f"{name}.weight").data += part.scale * (part.lora_B.weight @ part.lora_A.weight).detach()
    return net.requires_grad_(True)


def through_merged(adapted: LoRAModel, net: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of A and B by the chain rule from those of W + s B A: s B^T dW and s dW A^T."""
    gradients = {}
    for name, part in adapted.adapter.named_modules():
        if isinstance(part, LoRALinear):
            d_w = net.get_submodule(name).weight.grad
            gradients[f"{name}.lora_A.weight"] = part.scale * part.lora_B.weight.T @ d_w
            gradients[f"{name}.lora_B.weight"] = part.scale * d_w @ part.lora_A.weight.T
    return gradients


def batch(n: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, eps, t and captions."""
    noise = torch.Generator().manual_seed(1)
    z, eps = (torch.randn(n, 2, 4, 4, generator=noise, dtype=torch.float64) for _ in range(2))
    return z, eps, 0.1 + 0.8 * torch.rand(n, generator=noise, dtype=torch.float64), torch.arange(3 * n).view(n, 3) % 9


def fgm_loss(u: Tensor, v: Tensor, c: Tensor, x_0: Tensor, x_t: Tensor) -> Tensor:
    return losses.fgm(u, v, c).mean()


def generator_backward(
    low_memory: bool, generator: VelocityModel, teacher: VelocityModel, online: VelocityModel
) -> None:
    z, eps, t, captions = batch()
    g = FewStepGenerator(generator, PATH, 0.9)
    x_0 = g(z, captions)
    x_t, c = PATH.interpolate(x_0, eps, t)
    u, v = VelocityAt(teacher, t, captions), VelocityAt(online, t, captions)
    loss = two_stage(u, v, fgm_loss, c, x_0, x_t)[-1] if low_memory else fgm_loss(u(x_t), v(x_t), c, x_0, x_t)
    with g.adapter_active():
        loss.backward()


def online_backward(online: VelocityModel) -> None:
    x_0, eps, t, captions = batch()
    x_t, c = PATH.interpolate(x_0, eps, t)
    with online.adapter_active():
        losses.flow_matching(online(x_t, t, captions), c).mean().backward()


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_three_separate_networks(
    stable_diffusion: CaptionedMMDiT, checkpointing: bool, scale: float
) -> None:
    """A scale other than 1 guides teacher and online network, as guidance=long_and_short does."""

    def guided(net: VelocityModel) -> VelocityModel:
        return ClassifierFreeGuidance(net, scale) if scale != 1 else net

    generator, online = LoRA(rank=2, alpha=4.0).networks(stable_diffusion, 0, ("generator", "online"))
    filled(generator, 1), filled(online, 2)
    separate = [merged(generator), deepcopy(stable_diffusion), merged(online)]
    if checkpointing:
        stable_diffusion.transformer.enable_gradient_checkpointing()
    generator_backward(True, generator, guided(stable_diffusion), guided(online))
    generator_backward(False, separate[0], guided(separate[1]), guided(separate[2].requires_grad_(False)))
    agree(generator, through_merged(generator, separate[0]))
    assert all(p.grad is None for net in (online, stable_diffusion) for p in net.parameters())
    online_backward(guided(online))
    online_backward(guided(separate[2].requires_grad_(True)))
    agree(online, through_merged(online, separate[2]))


def agree(adapted: LoRAModel, expected: dict[str, Tensor]) -> None:
    actual = dict(adapted.adapter.named_parameters())
    assert actual.keys() == expected.keys() and len(actual) == 2 * 15  # 8 layers a block; the last lacks to_add_out
    for name, parameter in actual.items():
        assert parameter.grad is not None
        assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-13)


def test_plain_backward_under_checkpointing_is_not_exact(stable_diffusion: CaptionedMMDiT) -> None:
    """This is why adapters need the two-stage backward: blocks are recomputed under another adapter."""
    generator, online = LoRA(rank=2).networks(stable_diffusion, 0, ("generator", "online"))
    filled(generator, 1), filled(online, 2)
    generator_backward(True, generator, stable_diffusion, online)
    exact = [p.grad.clone() for p in generator.parameters() if p.grad is not None]
    generator.zero_grad()
    stable_diffusion.transformer.enable_gradient_checkpointing()
    try:
        generator_backward(False, generator, stable_diffusion, online)
    except CheckpointError:
        return
    assert any((p.grad - g).norm() > 1e-3 * g.norm() for p, g in zip(generator.parameters(), exact, strict=True))


def test_fresh_adapter_changes_no_bit_and_filled_one_equals_merged_weights(stable_diffusion: CaptionedMMDiT) -> None:
    x_t, _, t, captions = batch()
    (adapted,) = LoRA(rank=2, alpha=4.0).networks(stable_diffusion, 0, ("generator",))
    before = stable_diffusion(x_t, t, captions)
    assert torch.equal(adapted(x_t, t, captions), before)
    v = filled(adapted, 1)(x_t, t, captions)
    assert (v - before).norm() > 0.01 * before.norm()
    assert_close(merged(adapted)(x_t, t, captions), v, rtol=1e-10, atol=1e-12)
    assert torch.equal(stable_diffusion(x_t, t, captions), before)


def test_outer_adapter_is_restored_after_inner_call_and_after_exception() -> None:
    teacher = VelocityMLP(width=8, depth=1)
    one, other = LINEAR.networks(teacher, 0, ("one", "other"))
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    with one.adapter_active():
        other(x, t)
        assert one.shared.adapter is one.adapter
        with pytest.raises(RuntimeError), other.adapter_active():
            raise RuntimeError
        assert one.shared.adapter is one.adapter
    assert one.shared.adapter is None


@dataclass(frozen=True)
class Captioned(Data):
    """Noise with captions of three words."""

    shape: tuple[int, ...] = (2, 4, 4)
    num_classes: int = 0
    std: float = 1.0

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(n, *self.shape, generator=generator), self.conditions(n, generator)

    def conditions(self, n: int, generator: Generator) -> Tensor:
        return torch.randint(1, 9, (n, 3), generator=generator)

    def reference(self, n: int, generator: Generator) -> Tensor:
        return self.draw(n, generator)[0]


@pytest.mark.parametrize("features", [None, "online", "teacher"])
def test_training_is_the_same_under_gradient_checkpointing(
    stable_diffusion: CaptionedMMDiT, features: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator of two steps, both networks guided, adapters, and a GAN term on either network's features."""
    config = replace(CONFIG, max_steps=4, batch_size=3, warmup_steps=0)
    gan = partial(GANTerm, blocks=["transformer_blocks.0"], weight=0.5, width=4, features=features, r1_weight=0.1)
    monkeypatch.setattr(EvaluationCallback, "show", lambda *_: None)

    def trained(checkpointing: bool) -> dict[str, Tensor]:
        net = deepcopy(stable_diffusion).float()
        if checkpointing:
            net.transformer.enable_gradient_checkpointing()
        arguments = pieces(
            teacher=ClassifierFreeGuidance(net, 2.0), data=Captioned(), config=config, optimizer=partial(adamw, lr=1e-2)
        )
        module = Distillation(
            **arguments, t_star=0.9, steps=2, guidance="long_and_short", adapters=LoRA(rank=2, alpha=4.0),
            discriminator=gan if features else None,
        )  # fmt: skip
        return weights(run(module, tmp_path / str(checkpointing), "64-true"))

    plain, checkpointed = trained(False), trained(True)
    for name, tensor in plain.items():
        assert_close(checkpointed[name], tensor, rtol=1e-9, atol=1e-12)
