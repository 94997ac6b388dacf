"""The GAN term: what its losses are least at, who moves when, and that it is absent where it is off."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_training import SCHEDULE, distillation, moved, network, run, setting, weights
from torch import Tensor, nn
from torch.testing import assert_close

from fgm import losses
from fgm.analytic import gaussian
from fgm.build import build
from fgm.config import read_recipe
from fgm.data.points import Ring
from fgm.errors import Refusal
from fgm.networks.discriminator import Discriminator, feature_widths, find_block, read_features
from fgm.networks.dit import DiT
from fgm.networks.guidance import Guided
from fgm.networks.mlp import VelocityMLP
from fgm.networks.mmdit import CaptionedMMDiT
from fgm.paths import RectifiedPath
from fgm.times import Uniform
from fgm.training.adversary import Adversary
from fgm.training.checkpoints import LAST
from fgm.training.distillation import Distillation
from fgm.training.optimizers import adam
from fgm.training.real_data import RealData

GAN = partial(Adversary, blocks=["blocks.0"], weight=0.5, width=8)
CONDITION = torch.tensor([[1, 2, 0, 0], [3, 1, 4, 0]])


def mmdit() -> CaptionedMMDiT:
    torch.manual_seed(0)
    net = CaptionedMMDiT(size=8, patch=2, width=16, depth=3, heads=2, words=6, length=4, text_width=8)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def dit(num_classes: int = 3) -> DiT:
    torch.manual_seed(0)
    net = DiT(size=4, width=16, depth=2, heads=2, num_classes=num_classes)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def real_and_fake() -> tuple[Tensor, Tensor, Tensor]:
    """Points and two densities at t = 0.3, of two Gaussians on a line."""
    x, t, path = torch.linspace(-12, 12, 2001, dtype=torch.float64)[:, None], torch.tensor(0.3), RectifiedPath()
    laws = [gaussian(torch.tensor([m], dtype=torch.float64), torch.tensor(s)) for m, s in ((0.5, 0.7), (-0.4, 1.1))]
    p, q = (law.log_density(x, t, path) for law in laws)
    return x, p, q


def test_the_discriminators_loss_is_least_at_the_log_ratio() -> None:
    """E softplus(-l) + E_theta softplus(l) has a zero gradient at l = log p - log p_theta, and at no multiple of it."""
    _, p, q = real_and_fake()
    norms = []
    for scale in (1.0, 0.9, 1.1):
        logits = (scale * (p - q))[:, None].requires_grad_()
        loss = (p.exp() * losses.real_loss(logits) + q.exp() * losses.fake_loss(logits)).sum()
        norms.append(float(torch.autograd.grad(loss, logits)[0].norm()))
    assert norms[0] < 1e-12 < 1e-3 < min(norms[1:])


def test_logits_are_averaged_per_sample_and_symmetric() -> None:
    logits = torch.randn(5, 7)
    assert losses.real_loss(logits).shape == (5,)
    assert_close(losses.real_loss(logits), torch.log1p(torch.exp(-logits)).mean(1))
    assert_close(losses.fake_loss(logits), losses.real_loss(-logits))
    assert_close(losses.real_loss(logits) - losses.fake_loss(logits), -logits.mean(1))


def test_r1_of_a_linear_discriminator_is_its_weights_square() -> None:
    """l = <w, x> + b gives |w|^2 at every x; with two inputs their sum; its gradient by w is 2 w."""
    w, x, y = torch.randn(12, requires_grad=True), torch.randn(5, 3, 4, requires_grad=True), torch.randn(5, 12)
    penalty = losses.r1((x.flatten(1) @ w)[:, None] + 1, x)
    assert_close(penalty, w.square().sum().detach().expand(5))
    assert_close(torch.autograd.grad(penalty.mean(), w)[0], 2 * w.detach())
    y.requires_grad_()
    both = losses.r1((x.flatten(1) @ w + 3 * y @ w)[:, None], x, y)
    assert_close(both, 10 * w.square().sum().detach().expand(5))


def test_a_fresh_discriminator_says_zero_and_leaves_the_generator_alone() -> None:
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
def test_features_are_image_tokens_that_depend_on_everything(
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


def test_of_a_guided_network_the_features_are_those_inside() -> None:
    net, x, t, label = dit(), torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.8]), torch.tensor([0, 2])
    inside, outside = (read_features(n, ["blocks.1"], x, t, label)[0] for n in (net, Guided(net, 4.0)))
    assert torch.equal(inside, outside)


def test_a_block_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no blocks named 'blocks.2': choose of blocks \(0 to 1\)"):
        find_block(dit(), "blocks.2")


def gan(**options: Any) -> Distillation:
    schedule = {"schedule": options.pop("schedule")} if "schedule" in options else {}
    return distillation(adversary=partial(GAN, **options), **schedule)


def states(module: Distillation) -> list[dict[str, Tensor]]:
    """Weights after each cycle of a run to be."""
    seen: list[dict[str, Tensor]] = []
    step = module.training_step

    def watched(batch: Any) -> None:
        step(batch)
        seen.append(weights(module))

    module.training_step = watched  # type: ignore[method-assign]
    return seen


def test_the_discriminators_turn_moves_its_heads_alone_and_all_of_them(tmp_path: Path, monkeypatch: Any) -> None:
    module, seen = gan(r1_weight=0.1), []

    def watched_step(batch: Any) -> None:
        before = weights(module)
        with module.toggled_optimizer(module.optimizers()[0]):
            x_0, _ = module.generate(0)
        with module.toggled_optimizer(module.optimizers()[2]):
            module.adversary.turn(module, x_0.detach(), None, 0)
        seen.append((moved(before, weights(module)), before))

    monkeypatch.setattr(module, "training_step", watched_step)
    run(module, tmp_path)
    assert [names for names, _ in seen] == [{"adversary"}] * SCHEDULE.cycles
    after = weights(module)
    assert all(not torch.equal(seen[0][1][name], after[name]) for name in after if name.startswith("adversary"))


def test_every_trainable_tensor_moves_and_none_is_touched_out_of_turn(tmp_path: Path, monkeypatch: Any) -> None:
    """Gradients after each backward lie with the net whose turn it is: K online, discriminator, generator."""
    module = gan(features="online")
    before, touched, backward = weights(module), [], module.manual_backward

    def watched(loss: Tensor) -> None:
        backward(loss)
        nets = {"online": module.online, "adversary": module.adversary, "generator": module.generator}
        touched.append([name for name, net in nets.items() if any(p.grad is not None for p in net.parameters())])

    monkeypatch.setattr(module, "manual_backward", watched)
    run(module, tmp_path)
    assert touched == [["online"], ["adversary"], ["generator"]] * SCHEDULE.cycles
    after = weights(module)
    assert all(not torch.equal(before[name], after[name]) for name, _ in module.named_parameters())
    assert all(p.grad is None for p in module.parameters())
    assert module.trainer.global_step == SCHEDULE.cycles


@pytest.mark.parametrize("features", ["online", "teacher"])
@pytest.mark.parametrize("r1_at", ["features", "x_t"])
def test_the_teacher_is_never_moved_and_in_no_checkpoint(features: str, r1_at: str, tmp_path: Path) -> None:
    teacher = network(1)
    before = [p.clone() for p in teacher.parameters()]
    module = distillation(teacher=teacher, adversary=partial(GAN, features=features, r1_weight=1.0, r1_at=r1_at))
    run(module, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters())
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert {name.split(".")[0] for name in state["state_dict"]} == {"generator", "online", "ema", "cycle", "adversary"}
    assert len(state["optimizer_states"]) == 3


def still(adversary: Adversary, weight: float, bias: float) -> Adversary:
    """One whose heads' last layers are constant, and whose turn reports its loss and moves nothing."""
    for head in adversary.discriminator.heads:
        nn.init.constant_(head.layers[3].weight, weight)
        nn.init.constant_(head.layers[3].bias, bias)
    adversary.descent = lambda method, loss: loss.new_zeros(())  # type: ignore[assignment]
    return adversary


def test_each_turn_pays_what_it_says() -> None:
    """Where the heads say l everywhere: softplus(-l) + softplus(l), and weight softplus(-l) of the generator."""
    module, logit, softplus = gan(r1_weight=3.0), torch.tensor(0.7), nn.functional.softplus
    adversary, x_0 = still(module.adversary, 0.0, 0.7), module.generate(0)[0]
    told, (paid, also) = adversary.turn(module, x_0.detach(), None, 0), adversary.generator_turn(module, x_0, None, 0)
    assert_close(told["discriminator_loss"], softplus(-logit) + softplus(logit))
    assert_close((told["r1"], told["logit_real"], told["logit_fake"]), (0 * logit, logit, logit))
    assert_close((paid.detach(), also["adversarial_loss"]), (0.5 * softplus(-logit), softplus(-logit)))


@pytest.mark.parametrize("r1_at", ["features", "x_t"])
def test_r1_counts_by_half_its_weight(r1_at: str) -> None:
    module = gan(r1_weight=3.0, r1_at=r1_at)
    adversary, x_0 = still(module.adversary, 1.0, 0.7), module.generate(0)[0].detach()
    with_r1 = adversary.turn(module, x_0, None, 0)
    adversary.r1_weight = 0.0
    without = adversary.turn(module, x_0, None, 0)
    assert with_r1["r1"] > 0 and "r1" not in without
    assert_close(with_r1["discriminator_loss"] - without["discriminator_loss"], 1.5 * with_r1["r1"])


def test_the_term_is_nothing_before_its_first_cycle_and_of_fresh_noise_in_each() -> None:
    module = gan(from_cycle=4)
    adversary, x_0 = still(module.adversary, 1.0, 0.7), module.generate(0)[0].detach()
    assert adversary.turn(module, x_0, None, 3) == {}
    term, told = adversary.generator_turn(module, x_0, None, 3)
    assert term == 0 and told == {}
    assert len({adversary.generator_turn(module, x_0, None, cycle)[0].item() for cycle in (4, 5, 6)}) == 3


def test_the_discriminators_learning_rate_falls_to_zero_with_the_others(tmp_path: Path) -> None:
    """However late it starts: its schedule counts its own turns."""
    module = run(gan(from_cycle=3), tmp_path)
    assert [s.get_last_lr()[0] for s in module.lr_schedulers()] == [0, 0, 0]  # type: ignore[union-attr]


def test_a_step_down_the_generators_term_raises_its_logits() -> None:
    module = gan()
    adversary, (x_0, _) = still(module.adversary, 1.0, 0.0), module.generate(0)
    x_0 = x_0.detach().requires_grad_()
    before = adversary.generator_turn(module, x_0, None, 0)[0]
    after = adversary.generator_turn(module, x_0 - torch.autograd.grad(before, x_0)[0], None, 0)[0]
    assert after < before


class Pictures:
    """Noise as images of three classes, which may keep their labels to themselves."""

    shape, num_classes, std = (1, 4, 4), 3, 1.0

    def __init__(self, tells: bool) -> None:
        self.tells = tells

    def draw(self, n: int, generator: Any) -> Any:
        return torch.randn(n, 1, 4, 4, generator=generator), self.conditions(n, generator) if self.tells else None

    def conditions(self, n: int, generator: Any) -> Tensor:
        return torch.randint(3, (n,), generator=generator)

    def reference(self, n: int, generator: Any) -> Tensor:
        return self.draw(n, generator)[0]


@pytest.mark.parametrize("tells", [True, False])
def test_real_and_generated_images_are_judged_under_equal_knowledge(tells: bool, monkeypatch: Any) -> None:
    """Each under its label where real images tell theirs; else all under the null class."""
    s = setting(net=dit(), teacher=dit(), data=Pictures(tells=True))
    adversary = partial(GAN, blocks=["blocks.1"], data=Pictures(tells))
    module = Distillation(s, 0.9, generator_start="random", online_start="random", adversary=adversary)
    features, seen = module.adversary.features, []
    monkeypatch.setattr(module.adversary, "features", lambda x, t, y: seen.append(y) or features(x, t, y))
    still(module.adversary, 0.0, 0.0)
    x_0, label = module.generate(0)
    module.adversary.turn(module, x_0.detach(), label, 0)
    module.adversary.generator_turn(module, x_0, label, 0)
    real, *generated = seen
    assert all(torch.equal(y, label if tells else torch.full_like(label, 3)) for y in generated)
    assert real.max() < 3 if tells else torch.equal(real, generated[0])


def test_before_its_first_cycle_there_is_no_adversary(tmp_path: Path) -> None:
    """Bit for bit, heads included; from then on the generator feels it."""
    plain, late = distillation(), gan(from_cycle=4)
    without, with_it = states(plain), states(late)
    run(plain, tmp_path / "plain")
    run(late, tmp_path / "late")
    same = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in zip(without, with_it, strict=True)]
    heads = [moved(with_it[0], b) & {"adversary"} for b in with_it]
    assert not any(same[:4]) and not any(heads[:4])
    assert all(heads[4:]) and any(n.startswith("generator") for n in same[5])


@pytest.mark.parametrize("features", ["online", "teacher"])
def test_a_resumed_run_is_bit_equal_with_an_adversary_and_real_data(
    features: str, tmp_path: Path, monkeypatch: Any
) -> None:
    def fresh() -> Distillation:
        adversary = partial(GAN, features=features, from_cycle=2, r1_weight=0.5)
        return distillation(
            teacher=network(1), adversary=adversary, real_data=partial(RealData, a=0.9, b=0.92), online_turns=2
        )

    whole = weights(run(fresh(), tmp_path / "whole"))
    killed = fresh()
    step = killed.training_step

    def dies_at_six(batch: Any) -> None:
        if int(killed.cycle) == 6:
            raise RuntimeError("killed")
        step(batch)

    monkeypatch.setattr(killed, "training_step", dies_at_six)
    with pytest.raises(RuntimeError, match="killed"):
        run(killed, tmp_path / "parts")
    resumed = run(fresh(), tmp_path / "parts")
    assert int(resumed.cycle) == resumed.trainer.global_step == SCHEDULE.cycles
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights(resumed).items())


def test_a_non_finite_discriminator_gradient_is_skipped_and_counted(tmp_path: Path, monkeypatch: Any) -> None:
    module, bad = gan(), {2, 5}
    draw = module.adversary.images.draw

    def broken(method: Any, noise: Any) -> Any:
        x_0, condition = draw(method, noise)
        return x_0 * (float("nan") if int(method.cycle) in bad else 1), condition

    monkeypatch.setattr(module.adversary.images, "draw", broken)
    run(module, tmp_path)
    assert [descent.skipped for descent in module.descents] == [0, 0, 2]
    assert all(p.isfinite().all() for p in module.parameters())


def test_real_data_that_is_switched_off_draws_nothing_and_changes_no_bit(tmp_path: Path, monkeypatch: Any) -> None:
    plain = weights(run(distillation(), tmp_path / "plain"))
    off = distillation(real_data=partial(RealData, a=1.0, b=1.0))
    monkeypatch.setattr(Ring, "draw", lambda *_: pytest.fail("drew data"))
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights(run(off, tmp_path / "off")).items())


def test_the_online_turn_adds_as_many_real_images_with_the_other_shares() -> None:
    """a |v - (b/a) c|^2 of the generated, and (1 - a) |v - ((1 - b)/(1 - a)) c|^2 of a batch from its own stream."""
    module = distillation(real_data=partial(RealData, a=0.75, b=0.5))
    v, c = torch.randn(2, 16, 2)
    noise, s = module.noise("real", 3), module.setting
    x_t, real_c, t = s.noisy(Ring().draw(16, noise)[0], s.time, noise)
    wanted = 0.75 * (v - c / 1.5).square().mean() + 0.25 * (module.online(x_t, t) - 2 * real_c).square().mean()
    assert_close(module.real_data.online_loss(module, v, c, 3), wanted)


def test_real_data_moves_both_networks_elsewhere(tmp_path: Path) -> None:
    plain = weights(run(distillation(), tmp_path / "plain"))
    real = weights(run(distillation(real_data=partial(RealData, a=0.9, b=0.92)), tmp_path / "real"))
    assert moved(plain, real) == {"generator", "online", "ema"}


class Labelled(Ring):
    """Points that tell a label, or are flat images."""

    def draw(self, n: int, generator: Any) -> Any:
        return super().draw(n, generator)[0], torch.zeros(n, dtype=torch.int64)


class Wide(Ring):
    shape = (3,)


def test_real_images_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(Refusal, match=r"real images are of shape \(3,\), and generated ones of \(2,\)$"):
        gan(data=Wide())
    with pytest.raises(Refusal, match=r"the real images have conditions, and the online network is not trained so$"):
        distillation(real_data=partial(RealData, a=0.9, b=0.9, data=Labelled()))
    assert gan(data=Labelled()).adversary.seen(None) is None


def test_a_folder_that_is_not_there_is_refused_before_a_teacher_is_trained() -> None:
    node = "{_target_: fgm.data.images.ImageFolder, directory: /no/pngs}"
    for method in ("fgm_gan", "fgm_realdata"):
        name = {"fgm_gan": "adversary", "fgm_realdata": "real_data"}[method]
        config = read_recipe("digits_fgm", [f"method={method}", f"method.{name}.data={node}", "outputs=/no/outputs"])
        with pytest.raises(Refusal, match=r"^/no/pngs is no folder: it should hold PNGs$"):
            build(config, Console(quiet=True))


class Two(Ring):
    """One Gaussian for the discriminator to tell from another."""

    def points(self, n: int, generator: Any) -> Tensor:
        return 0.5 + 0.7 * torch.randn(n, 2, generator=generator)


def test_the_discriminator_learns_the_log_ratio_of_two_gaussians(tmp_path: Path, monkeypatch: Any) -> None:
    """On random features of a frozen network: its logits correlate with log p/p_theta, and its loss nears the least."""
    torch.manual_seed(0)
    schedule = replace(SCHEDULE, cycles=300, batch_size=256, clip=100.0, save_every=1000)
    teacher = VelocityMLP(dim=2, width=64, depth=1)
    options = {"features": "teacher", "width": 32, "time": Uniform(0.2, 0.2001), "data": Two()}
    module = distillation(
        teacher=teacher, schedule=schedule, adversary=partial(GAN, **options, optimizer=partial(adam, lr=5e-3))
    )

    def one_turn(batch: Any) -> None:
        cycle = int(module.cycle)
        x_0 = -0.4 + 1.1 * torch.randn(256, 2, generator=module.noise("fake", cycle))
        with module.toggled_optimizer(module.optimizers()[2]):
            scalars = module.adversary.turn(module, x_0, None, cycle)
        module.report(scalars, 0)

    monkeypatch.setattr(module, "training_step", one_turn)
    run(module, tmp_path)
    t, path = torch.tensor(0.2), RectifiedPath()
    real, fake = (gaussian(torch.full((2,), m), torch.tensor(s)) for m, s in ((0.5, 0.7), (-0.4, 1.1)))
    generator = torch.Generator().manual_seed(7)
    x = [path.interpolate(law.sample(4000, generator), torch.randn(4000, 2, generator=generator), t.expand(4000))[0]
         for law in (real, fake)]  # fmt: skip
    ratio = [real.log_density(points, t, path) - fake.log_density(points, t, path) for points in x]
    with torch.no_grad():
        features = [module.adversary.features(points, t.expand(4000), None) for points in x]
        logits = [module.adversary.discriminator(f)[:, 0] for f in features]
    assert torch.corrcoef(torch.stack([torch.cat(logits), torch.cat(ratio)]))[0, 1] > 0.9
    loss, least = (
        float(losses.real_loss(of_real[:, None]).mean() + losses.fake_loss(of_fake[:, None]).mean())
        for of_real, of_fake in (logits, ratio)
    )
    assert least < 1.2 and loss < least + 0.05
