"""The discriminator: the minimum of its losses, what its features depend on, and that it learns the log ratio."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import CONDITION, GAN, dit, mmdit
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import CONFIG, distillation, network, run

from fgm.data.points import Ring
from fgm.flow import losses
from fgm.flow.analytic import gaussian
from fgm.flow.paths import RectifiedPath
from fgm.flow.times import Uniform
from fgm.networks.discriminator import Discriminator, feature_widths, find_block, read_features
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.networks.mlp import VelocityMLP
from fgm.training.discriminator import GANTerm
from fgm.training.optim import adam


def real_and_fake() -> tuple[Tensor, Tensor, Tensor]:
    """Points and two densities at t = 0.3, of two Gaussians on a line."""
    x, t, path = torch.linspace(-12, 12, 2001, dtype=torch.float64)[:, None], torch.tensor(0.3), RectifiedPath()
    laws = [gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor(s)) for m, s in ((0.5, 0.7), (-0.4, 1.1))]
    p, q = (law.log_density(x, t, path) for law in laws)
    return x, p, q


def test_loss_is_minimal_at_the_log_ratio() -> None:
    """E softplus(-l) + E_theta softplus(l) has a zero gradient at l = log p - log p_theta, and at no multiple of it."""
    _, p, q = real_and_fake()
    norms = []
    for scale in (1.0, 0.9, 1.1):
        logits = (scale * (p - q))[:, None].requires_grad_()
        loss = (p.exp() * losses.real_loss(logits) + q.exp() * losses.fake_loss(logits)).sum()
        norms.append(float(torch.autograd.grad(loss, logits)[0].norm()))
    assert norms[0] < 1e-12 < 1e-3 < min(norms[1:])


def test_losses_are_means_over_tokens_and_symmetric() -> None:
    logits = torch.randn(5, 7)
    assert losses.real_loss(logits).shape == (5,)
    assert_close(losses.real_loss(logits), torch.log1p(torch.exp(-logits)).mean(1))
    assert_close(losses.fake_loss(logits), losses.real_loss(-logits))
    assert_close(losses.real_loss(logits) - losses.fake_loss(logits), -logits.mean(1))


def test_r1_of_a_linear_discriminator_is_its_squared_weight() -> None:
    """l = <w, x> + b gives |w|^2 at every x; with two inputs their sum; its gradient by w is 2 w."""
    w, x, y = torch.randn(12, requires_grad=True), torch.randn(5, 3, 4, requires_grad=True), torch.randn(5, 12)
    penalty = losses.r1((x.flatten(1) @ w)[:, None] + 1, x)
    assert_close(penalty, w.square().sum().detach().expand(5))
    assert_close(torch.autograd.grad(penalty.mean(), w)[0], 2 * w.detach())
    y.requires_grad_()
    both = losses.r1((x.flatten(1) @ w + 3 * y @ w)[:, None], x, y)
    assert_close(both, 10 * w.square().sum().detach().expand(5))


def test_new_discriminator_returns_zero_and_gives_no_gradient() -> None:
    net, head = dit(), Discriminator([16], 8)
    x = torch.randn(2, 1, 4, 4, requires_grad=True)
    logits = head(read_features(net, ["blocks.1"], x, torch.full((2,), 0.5), torch.tensor([0, 3])))
    assert torch.equal(logits, torch.zeros(2, 4))
    assert not torch.autograd.grad(losses.real_loss(logits).sum(), x)[0].any()


@pytest.mark.parametrize(
    "make, block, shape, condition",
    [
        (dit, "blocks.1", (2, 4, 16), torch.tensor([0, 3])),
        (mmdit, "transformer_blocks.1", (2, 16, 16), CONDITION),
        (mmdit, "transformer_blocks.2", (2, 16, 16), CONDITION),
        (network, "blocks.0", (2, 1, 16), None),
    ],
    ids=["dit", "joint block", "last joint block", "mlp"],
)
def test_features_are_image_tokens_that_depend_on_every_input(
    make: Callable[[], Any], block: str, shape: tuple[int, ...], condition: Tensor | None
) -> None:
    """On x_t, t and the condition; gradients reach x_t; and the width is known without a forward pass."""
    net = make().requires_grad_(False)
    x, t = torch.randn(2, *net.shape, requires_grad=True), torch.tensor([0.3, 0.8])
    (features,) = read_features(net, [block], x, t, condition)
    assert features.shape == shape
    assert feature_widths(net, [block], None if condition is None else condition[:1]) == [shape[2]]
    assert torch.autograd.grad(features.square().sum(), x)[0].flatten(1).norm(dim=1).min() > 0
    changed = [(x + 1, t, condition), (x, 1 - t, condition)]
    changed += [] if condition is None else [(x, t, condition.flip(0))]
    assert all(not torch.allclose(read_features(net, [block], *args)[0], features) for args in changed)
    assert not any(m._forward_hooks for m in net.modules())


def test_gradient_checkpointing_changes_no_feature_and_no_gradient() -> None:
    net, gradients = mmdit().requires_grad_(False).train(), []
    for on in (False, True):
        if on:
            net.transformer.enable_gradient_checkpointing()
        x = torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8).requires_grad_()
        features = read_features(
            net, ["transformer_blocks.0", "transformer_blocks.2"], x, torch.full((2,), 0.5), CONDITION
        )
        gradients.append(torch.autograd.grad(sum(f.sin().sum() for f in features), x)[0])
    assert gradients[0].norm() > 0 and torch.equal(*gradients)


class WithLookup(VelocityMLP):
    """Looks its condition up in a table outside of torch, as for cached prompts."""

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None
        return super().forward(x_t, t) + torch.tensor([[0.5, 1.5][i] for i in condition.tolist()])[:, None]


def test_widths_are_found_by_a_call_if_the_meta_device_cannot() -> None:
    assert feature_widths(WithLookup(dim=2, width=24, depth=2), ["blocks.1"], torch.tensor([1])) == [24]


def test_features_of_a_guided_network_are_those_inside_guidance() -> None:
    net, x, t, label = dit(), torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8]), torch.tensor([0, 2])
    inside, outside = (read_features(n, ["blocks.1"], x, t, label)[0] for n in (net, ClassifierFreeGuidance(net, 4.0)))
    assert torch.equal(inside, outside)


def test_unknown_block_is_an_error_that_lists_the_blocks() -> None:
    with pytest.raises(ValueError, match=r"no blocks named 'blocks.2': choose of blocks \(0 to 1\)"):
        find_block(dit(), "blocks.2")


class Gaussian(Ring):
    def points(self, n: int, generator: Any) -> Tensor:
        return 0.5 + 0.7 * torch.randn(n, 2, generator=generator)


def trained(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> GANTerm:
    """A discriminator on random features of a frozen network, at t = 0.2, of N(0.5, 0.7^2) and N(-0.4, 1.1^2)."""
    torch.manual_seed(0)
    config = replace(CONFIG, max_steps=300, batch_size=256, gradient_clip_val=100.0, save_every_n_steps=1000)
    options = {"features": "teacher", "width": 32, "times": Uniform(0.2, 0.2001), "data": Gaussian()}
    gan = partial(GAN, **options, optimizer=partial(adam, lr=5e-3))
    module = distillation(teacher=VelocityMLP(dim=2, width=64, depth=1), config=config, discriminator=gan)

    def discriminator_step(batch: Any) -> None:
        step = int(module.step)
        x_0 = -0.4 + 1.1 * torch.randn(256, 2, generator=module.rng("fake", step))
        module.finish_step(module.gan.update(x_0, None, step))

    monkeypatch.setattr(module, "training_step", discriminator_step)
    run(module, run_dir)
    return module.gan


def test_discriminator_learns_the_log_ratio_of_two_gaussians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits correlate with log p/p_theta, and its loss nears the least."""
    gan, t, path = trained(tmp_path, monkeypatch), torch.tensor(0.2), RectifiedPath()
    real, fake = (gaussian(torch.full((2,), m), torch.tensor(s)) for m, s in ((0.5, 0.7), (-0.4, 1.1)))
    generator = torch.Generator().manual_seed(7)
    x = [path.interpolate(law.sample(4000, generator), torch.randn(4000, 2, generator=generator), t.expand(4000))[0]
         for law in (real, fake)]  # fmt: skip
    ratio = [real.log_density(points, t, path) - fake.log_density(points, t, path) for points in x]
    with torch.no_grad():
        features = [read_features(gan.net, gan.blocks, points, t.expand(4000), None) for points in x]
        logits = [gan.discriminator(f)[:, 0] for f in features]
    assert torch.corrcoef(torch.stack([torch.cat(logits), torch.cat(ratio)]))[0, 1] > 0.9
    loss, least = (
        float(losses.real_loss(of_real[:, None]).mean() + losses.fake_loss(of_fake[:, None]).mean())
        for of_real, of_fake in (logits, ratio)
    )
    assert least < 1.2 and loss < least + 0.05
