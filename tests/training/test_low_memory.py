"""The two-stage backward and micro-batches have the gradients of the plain step, with less of its graphs in memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from toy_trainings import CONFIG, LINEAR, network, pieces, run, teacher_training

from fgm.flow import losses
from fgm.flow.paths import RectifiedPath
from fgm.networks.generator import FewStepGenerator
from fgm.networks.mlp import VelocityMLP
from fgm.training import module as training_module
from fgm.training.config import TrainingConfig
from fgm.training.distillation import Distillation
from fgm.training.memory import PerSampleLoss, VelocityAt, two_stage
from fgm.training.memory_estimate import estimate_memory
from fgm.training.module import TrainingModule, slices
from fgm.training.real_images import RealUID

PATH = RectifiedPath()


def plain(teacher: VelocityAt, online: VelocityAt, loss: PerSampleLoss, c: Tensor, x_0: Tensor, x_t: Tensor) -> Any:
    u, v = teacher(x_t), online(x_t)
    value = loss(u, v, c, x_0, x_t).mean()
    return u, v, value, value


class Step:
    """Generator, teacher and online network, three separate nets, and one batch."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        def net(seed: int) -> VelocityMLP:
            torch.manual_seed(seed)
            return VelocityMLP(dim=3, width=32, depth=3).to(dtype)

        self.generator, self.nets = FewStepGenerator(net(1), PATH, 0.9), (net(2), net(3))
        noise = torch.Generator().manual_seed(0)
        self.z, self.eps = (torch.randn(64, 3, generator=noise, dtype=dtype) for _ in range(2))
        t = 0.05 + 0.9 * torch.rand(64, generator=noise, dtype=dtype)
        self.t, self.velocities = t, [VelocityAt(net, t, None) for net in self.nets]

    def results(self, backward: Any, loss: PerSampleLoss) -> Any:
        """u, v, the loss, and the surrogate."""
        x_0 = self.generator(self.z)
        x_t, c = PATH.interpolate(x_0, self.eps, self.t)
        return backward(*self.velocities, loss, c, x_0, x_t)

    def gradient(self, surrogate: Tensor) -> Tensor:
        """By every weight of the generator."""
        gradients = torch.autograd.grad(surrogate, list(self.generator.parameters()))
        return torch.cat([g.flatten() for g in gradients])


def fgm(lambda_1: float = 1.0, detach: bool = False) -> PerSampleLoss:
    return lambda u, v, c, x_0, x_t: losses.fgm(u, v, c, lambda_1, detach)


LOSSES: list[PerSampleLoss] = [
    fgm(), fgm(-0.4), fgm(0.0, True),
    lambda u, v, c, x_0, x_t: losses.flow_matching(u, c),
    lambda u, v, c, x_0, x_t: losses.squared_norm(v),
    lambda u, v, c, x_0, x_t: ((u - v) * x_0 * x_t.sin()).sum(1),
    lambda u, v, c, x_0, x_t: losses.squared_norm(x_0),
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_two_stage_gradient_is_the_plain_one(loss: PerSampleLoss, dtype: torch.dtype, rtol: float) -> None:
    step = Step(dtype)
    expected, ours = step.results(plain, loss), step.results(two_stage, loss)
    assert all(torch.equal(a, b) for a, b in zip(ours[:3], expected[:3], strict=True))
    a, b = step.gradient(ours[3]), step.gradient(expected[3])
    assert (a - b).norm() <= rtol * b.norm() and b.norm() > 0


def test_two_stage_gives_no_weight_of_teacher_or_online_network_a_gradient() -> None:
    step = Step()
    step.results(two_stage, fgm())[3].backward()
    assert all(p.grad is None for net in step.nets for p in net.parameters())
    assert all(p.grad is not None for p in step.generator.parameters())


class Counted:
    """A saved activation, counted from its packing to its release."""

    now = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Counted.now += 1
        Counted.peak = max(Counted.peak, Counted.now)

    def __del__(self) -> None:
        Counted.now -= 1


def peak(work: Callable[[], Tensor]) -> int:
    """The most activations at a time of what work builds and its backward takes apart."""
    Counted.now = Counted.peak = 0
    with saved_tensors_hooks(Counted, lambda counted: counted.tensor):
        work().backward()
    return Counted.peak


def test_two_stage_holds_the_graph_of_one_network_at_a_time() -> None:
    step, x = Step(), torch.randn(4, 3, requires_grad=True)
    for net in step.nets:
        net.requires_grad_(False)
    x_t, c = (x.detach().requires_grad_() for x in PATH.interpolate(step.z, step.eps, step.t))
    one = peak(lambda: step.nets[0](x, torch.full((4,), 0.5)).sum())
    assert peak(lambda: plain(*step.velocities, fgm(), c, step.z, x_t)[3]) >= 2 * one
    assert peak(lambda: two_stage(*step.velocities, fgm(), c, step.z, x_t)[3]) <= one + 12  # and what the loss saves


# micro-batches

VARIANTS: dict[str, dict[str, Any]] = {
    "three online steps": {"online_steps": 3},
    "GAN, two-stage": {"discriminator": partial(GAN, r1_weight=0.5, r1_at="x_t"), "low_memory": True, "lambda_1": 0.0},
    "GAN": {"discriminator": partial(GAN, r1_weight=0.5)},
    "RealUID": {"real_uid": RealUID(0.9, 0.92)},
    "three steps": {"steps": 3},
    "DMD's direction": {"detach": True, "lambda_1": 0.0},
    "adapters": {"adapters": LINEAR},
}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.01)


def config(parts: int) -> TrainingConfig:
    return replace(
        CONFIG, max_steps=2, warmup_steps=0, lr_decay_fraction=0.0, gradient_clip_val=float("inf"), micro_batches=parts
    )


def distillation(parts: int, **options: Any) -> Distillation:
    s = pieces(network=lambda: network(2), teacher=network(1), config=config(parts), optimizer=sgd)
    return Distillation(**s, t_star=0.9, **options)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradient of each update, all of its tensors in one."""
    seen: list[Tensor] = []
    clip_gradients = training_module.clip_gradients

    def watched(optimizer: Any, max_norm: float) -> Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        return clip_gradients(optimizer, max_norm)

    monkeypatch.setattr(training_module, "clip_gradients", watched)
    return seen


def largest_change(updates: list[Tensor], folder: Path, modules: list[TrainingModule], precision: str) -> float:
    """The largest relative distance of an update of the second module from that of the first."""
    updates.clear()
    for i, module in enumerate(modules):
        run(module, folder / str(i), precision)
    whole, other = updates[: len(updates) // 2], updates[len(updates) // 2 :]
    assert all(b.norm() > 0 for b in whole)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(other, whole, strict=True))


def nudged(module: TrainingModule) -> TrainingModule:
    """Every weight moved by one unit in its last place."""
    noise = torch.Generator().manual_seed(0)
    for p in (p for net in module.networks() for p in net.parameters()):
        p.data.mul_(1 + 2.0**-23 * (2 * torch.randint(2, p.shape, generator=noise) - 1))
    return module


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_micro_batches_have_the_gradients_of_the_whole_batch(
    options: dict[str, Any], updates: list[Tensor], tmp_path: Path
) -> None:
    """3 parts of 16 samples, which are 5, 5 and 6."""
    modules: Any = [distillation(parts, **options) for parts in (1, 3)]
    assert largest_change(updates, tmp_path, modules, "64-true") <= 1e-12


SINGLE: dict[str, Callable[[int], TrainingModule]] = {
    "GAN": partial(distillation, **VARIANTS["GAN"]),
    "three steps": partial(distillation, steps=3),
    "adapters": partial(distillation, adapters=LINEAR),
    "teacher": lambda parts: teacher_training(config=config(parts), optimizer=sgd),
}


@pytest.mark.parametrize("make", SINGLE.values(), ids=SINGLE)
def test_micro_batches_differ_by_rounding_in_single_precision(
    make: Callable[[int], TrainingModule], updates: list[Tensor], tmp_path: Path
) -> None:
    """By at most three times what one rounding of every weight does."""
    rounding = largest_change(updates, tmp_path / "nudged", [make(1), nudged(make(1))], "32-true")
    assert largest_change(updates, tmp_path / "parts", [make(1), make(3)], "32-true") <= 3 * rounding


def test_logged_scalars_are_means_over_the_whole_batch(tmp_path: Path) -> None:
    logged: list[dict[str, Tensor]] = []
    for parts in (1, 3):
        module = distillation(parts, **VARIANTS["GAN"])
        module.finish_step = lambda scalars, m=module: (logged.append(scalars), m.step.add_(1))  # type: ignore[method-assign, assignment]
        run(module, tmp_path / str(parts))
    assert len(logged) == 4
    for one, three in zip(logged[:2], logged[2:], strict=True):
        assert one.keys() == three.keys()
        assert all(torch.allclose(one[name], three[name], rtol=1e-4, atol=1e-6) for name in one)


@pytest.mark.parametrize("n, parts", [(16, 1), (16, 3), (5, 5), (7, 2)])
def test_micro_batches_cover_the_batch_evenly(n: int, parts: int) -> None:
    cut = [torch.arange(n)[where] for where in slices(n, parts)]
    assert torch.equal(torch.cat(cut), torch.arange(n)) and len(cut) == parts
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize("low_memory", [False, True])
def test_four_micro_batches_take_less_than_a_third_of_the_activations(low_memory: bool) -> None:
    def activations(parts: int) -> int:
        large = replace(CONFIG, batch_size=4096, micro_batches=parts)
        s = pieces(teacher=network(1), config=large, optimizer=sgd)
        return estimate_memory(lambda: Distillation(**s, t_star=0.9, low_memory=low_memory), "32-true").activations

    assert activations(4) < activations(1) / 3


def test_more_micro_batches_than_samples_are_rejected() -> None:
    with pytest.raises(ValueError, match="micro_batches = 17 is more than"):
        replace(CONFIG, micro_batches=17)
