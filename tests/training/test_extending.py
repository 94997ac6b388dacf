"""A subclass that overrides generator_loss adds exactly the gradient of its term to the generator's update."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_trainings import CONFIG, network, pieces, run

from fgm.flow import losses
from fgm.training.distillation import Distillation

RATE, WEIGHT = 0.5, 0.3


class SmallSamples(Distillation):
    """Adds WEIGHT |x_0|^2 per sample."""

    def generator_loss(self, u, v, c, x_0, x_t, t, condition):
        loss = super().generator_loss(u, v, c, x_0, x_t, t, condition)
        return loss + WEIGHT * losses.squared_norm(x_0)


class RobustMismatch(Distillation):
    """Adds WEIGHT sqrt(1 + |u - v|^2) per sample."""

    def generator_loss(self, u, v, c, x_0, x_t, t, condition):
        loss = super().generator_loss(u, v, c, x_0, x_t, t, condition)
        return loss + WEIGHT * (1 + losses.squared_norm(u - v)).sqrt()


def small_samples(u: Tensor, v: Tensor, x_0: Tensor) -> Tensor:
    return WEIGHT * x_0.square().mean()


def robust_mismatch(u: Tensor, v: Tensor, x_0: Tensor) -> Tensor:
    return WEIGHT * (1 + (u - v).square().mean(1)).sqrt().mean()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), RATE)


def training(method: type[Distillation], low_memory: bool, micro_batches: int) -> Distillation:
    config = replace(
        CONFIG, max_steps=1, warmup_steps=0, lr_decay_fraction=0.0, gradient_clip_val=float("inf"),
        micro_batches=micro_batches,
    )  # fmt: skip
    s = pieces(network=lambda: network(2), teacher=network(1), config=config, optimizer=sgd)
    return method(**s, t_star=0.9, low_memory=low_memory)


def gradient(module: Distillation, run_dir: Path) -> Tensor:
    """Of the generator's first update, from its weights before and after."""
    before = [p.detach().double() for p in module.generator.parameters()]
    run(module, run_dir, "64-true")
    after = module.generator.parameters()
    return torch.cat([((b - a) / RATE).flatten() for a, b in zip(after, before, strict=True)])


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("method, term", [(SmallSamples, small_samples), (RobustMismatch, robust_mismatch)])
def test_overridden_generator_loss_adds_exactly_its_gradient(
    method: type[Distillation], term: Any, low_memory: bool, micro_batches: int, tmp_path: Path
) -> None:
    extended, plain = (training(kind, low_memory, micro_batches) for kind in (method, Distillation))
    added = gradient(extended, tmp_path / "extended") - gradient(plain, tmp_path / "plain")
    initial = training(Distillation, low_memory, 1).double()
    initial.frozen[0].double()
    z, condition, eps = initial.latents(0)
    x_0 = initial.generator(z, condition, eps)
    t, noise = initial.times_and_noise(x_0, initial.times, initial.rng("generator", 0))
    x_t, _ = initial.path.interpolate(x_0, noise, t)
    v = plain.online(x_t, t)  # after the one online update, which the term does not change
    by_hand = torch.autograd.grad(term(initial.teacher(x_t, t), v, x_0), list(initial.generator.parameters()))
    expected = torch.cat([g.flatten() for g in by_hand])
    assert expected.norm() > 1e-4
    assert (added - expected).norm() <= 1e-10 * expected.norm()
