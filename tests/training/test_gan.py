"""The GAN term: its losses, what it conditions on, and that it does not exist before its first step."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN, Captioned, Pictures, dit, gan, mmdit
from rich.console import Console
from torch import Tensor, nn
from torch.testing import assert_close
from toy_trainings import CONFIG, distillation, last_weights, moved, pieces, run, weights

from fgm.cli.build import build
from fgm.cli.config import compose_experiment
from fgm.data.points import Ring
from fgm.evaluation.sampling import balanced, draw_samples, ode_sampler
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.training import discriminator
from fgm.training.discriminator import GANTerm
from fgm.training.distillation import Distillation
from fgm.training.module import Scalars
from fgm.training.real_images import RealUID
from fgm.utils.errors import UserError


def constant(module: Distillation, weight: float, bias: float) -> GANTerm:
    """The term of a module whose heads' last layers are constant, and whose updates move nothing."""
    for head in module.gan.discriminator.heads:
        nn.init.constant_(head.layers[3].weight, weight)
        nn.init.constant_(head.layers[3].bias, bias)
    module.update = lambda name, losses: sum(losses)  # type: ignore[method-assign, assignment]
    return module.gan


def generated(module: Distillation) -> tuple[Tensor, Tensor | None]:
    z, condition, _ = module.latents(0)
    return module.generator(z, condition).detach(), condition


def generator_term(
    module: Distillation, x_0: Tensor, condition: Tensor | None = None, step: int = 0
) -> tuple[Tensor, Tensor]:
    """The loss without its weight, and the gradient that is added at x_0."""
    x_0, scalars = x_0.detach().requires_grad_(), Scalars()
    module.gan.add_generator_gradient(x_0, condition, step, scalars)
    assert x_0.grad is not None
    return scalars["adversarial_loss"], x_0.grad


def test_losses_of_constant_heads_are_softplus_of_their_logit() -> None:
    """softplus(-l) + softplus(l) of the discriminator, softplus(-l) of the generator."""
    module, logit, softplus = gan(r1_weight=3.0), torch.tensor(0.7), nn.functional.softplus
    term, (x_0, _) = constant(module, 0.0, 0.7), generated(module)
    logged, (loss, gradient) = term.update(x_0, None, 0), generator_term(module, x_0)
    assert_close(logged["discriminator_loss"], softplus(-logit) + softplus(logit))
    assert_close((logged["r1"], logged["logit_real"], logged["logit_fake"]), (0 * logit, logit, logit))
    assert_close((loss, gradient), (softplus(-logit), torch.zeros_like(x_0)))


@pytest.mark.parametrize("r1_at", ["features", "x_t"])
def test_r1_counts_by_half_its_weight(r1_at: str) -> None:
    module = gan(r1_weight=3.0, r1_at=r1_at)
    term, (x_0, _) = constant(module, 1.0, 0.7), generated(module)
    with_r1 = term.update(x_0, None, 0)
    term.r1_weight = 0.0
    without = term.update(x_0, None, 0)
    assert with_r1["r1"] > 0 and "r1" not in without
    assert_close(with_r1["discriminator_loss"] - without["discriminator_loss"], 1.5 * with_r1["r1"])


def test_generator_descends_its_term_by_the_weighted_gradient_of_fresh_noise() -> None:
    module = gan()
    term, (x_0, _) = constant(module, 1.0, 0.0), generated(module)
    before, gradient = generator_term(module, x_0)
    assert generator_term(module, x_0 - gradient / term.weight)[0] < before
    term.weight *= 2
    assert_close(generator_term(module, x_0)[1], 2 * gradient)
    assert len({generator_term(module, x_0, step=step)[0].item() for step in (4, 5, 6)}) == 3


@pytest.mark.parametrize("labelled", [True, False])
def test_real_and_generated_images_have_the_same_kind_of_condition(labelled: bool, monkeypatch: Any) -> None:
    """Each its own label if real images have labels; else all the null class."""
    s = pieces(network=dit, teacher=dit(), data=Pictures(True))
    make = partial(GAN, blocks=["blocks.1"], data=Pictures(labelled))
    module = Distillation(**s, t_star=0.9, generator_init="random", online_init="random", discriminator=make)
    read, seen = discriminator.read_features, []
    monkeypatch.setattr(discriminator, "read_features", lambda *call: seen.append(call[-1]) or read(*call))
    constant(module, 0.0, 0.0)
    x_0, label = generated(module)
    assert label is not None
    module.gan.update(x_0, label, 0)
    generator_term(module, x_0, label)
    real, *fake = seen
    assert all(torch.equal(y, label if labelled else torch.full_like(label, 3)) for y in fake)
    assert real.max() < 3 if labelled else torch.equal(real, fake[0])


class Untouched(Pictures):
    """Pictures that nobody may draw."""

    def draw(self, n: int, generator: Any) -> Any:
        raise AssertionError("real images were drawn")


def test_discriminator_on_the_teachers_samples_sees_its_ode_and_no_real_image(tmp_path: Path, monkeypatch: Any) -> None:
    teacher, seen = dit(), []
    make = partial(GAN, blocks=["blocks.1"], teacher_samples=5)
    s = pieces(network=dit, teacher=teacher, data=Untouched(True))
    module = Distillation(**s, t_star=0.9, discriminator=make, teacher_steps=3)
    draw_data = module.draw_data
    monkeypatch.setattr(module, "draw_data", lambda *call: seen.append(draw_data(*call)) or seen[-1])
    run(module, tmp_path)
    labels = balanced(3).conditions
    x_0, label = draw_samples(ode_sampler(teacher, s["path"], 3), 0, 5, teacher.shape, labels, torch.device("cpu"))
    assert label is not None and len(seen) == s["config"].max_steps
    for images, conditions in seen:
        row = (images[:, None] - x_0).flatten(2).abs().amax(2).argmin(1)
        assert_close(images, x_0[row])
        assert torch.equal(conditions, label[row])
    with pytest.raises(ValueError, match="leave out data or teacher_samples"):
        Distillation(**s, t_star=0.9, discriminator=partial(make, data=Pictures(True)))


def recorded(module: Distillation) -> list[dict[str, Tensor]]:
    """Weights after each step of a run to be."""
    seen: list[dict[str, Tensor]] = []
    step = module.training_step

    def recording(batch: Any) -> None:
        step(batch)
        seen.append(weights(module))

    module.training_step = recording  # type: ignore[method-assign]
    return seen


def test_before_its_first_step_the_term_changes_no_bit(tmp_path: Path) -> None:
    """Heads included; from then on the generator feels it, and its learning rate falls to zero with the others."""
    plain, late = distillation(), gan(start_step=4)
    without, with_it = recorded(plain), recorded(late)
    run(plain, tmp_path / "plain")
    run(late, tmp_path / "late")
    changed = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in zip(without, with_it, strict=True)]
    heads = [moved(with_it[0], state) & {"gan"} for state in with_it]
    assert not any(changed[:4]) and not any(heads[:4])
    assert all(heads[4:]) and any(n.startswith("generator") for n in changed[5])
    assert [s.get_last_lr()[0] for s in late.lr_schedulers()] == [0, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("features", ["online", "teacher"])
def test_guided_mmdit_trains_with_gan_and_real_uid(features: str, tmp_path: Path) -> None:
    """Everything moves but the teacher and the last block's text queries, which lead nowhere."""
    teacher = mmdit()
    config = replace(CONFIG, max_steps=3, batch_size=4, warmup_steps=0, lr_decay_fraction=0.0)
    frozen = {name: p.clone() for name, p in teacher.named_parameters()}
    make = partial(
        GAN, blocks=["transformer_blocks.0", "transformer_blocks.2"], features=features, r1_weight=1.0, r1_at="x_t"
    )
    s = pieces(teacher=ClassifierFreeGuidance(teacher, 3.0), data=Captioned(True), config=config)
    module = Distillation(**s, t_star=0.9, discriminator=make, real_uid=RealUID(0.9, 0.92))
    before = weights(module)
    after = weights(run(module, tmp_path))
    unmoved = {name for name, _ in module.named_parameters() if torch.equal(before[name], after[name])}
    queries = {"add_q_proj.weight", "add_q_proj.bias"}
    assert {name.split("transformer_blocks.2.attn.")[-1] for name in unmoved} == queries
    assert all(torch.equal(frozen[name], p) for name, p in teacher.named_parameters())
    assert not any(name.startswith("frozen") for name in last_weights(tmp_path))
    assert all(total == 0 for total, _ in module.skipped.values())


def test_non_finite_discriminator_gradient_is_skipped_and_counted(tmp_path: Path, monkeypatch: Any) -> None:
    module = gan()
    draw_data = module.draw_data

    def broken(data: Any, rng: Any) -> Any:
        x_0, condition = draw_data(data, rng)
        return x_0 * (float("nan") if int(module.step) in (2, 5) else 1), condition

    monkeypatch.setattr(module, "draw_data", broken)
    run(module, tmp_path)
    assert module.skipped == {"online": [0, 0], "discriminator": [2, 0], "generator": [0, 0]}
    assert all(p.isfinite().all() for p in module.parameters())


# real images of RealUID and the GAN term


def test_online_loss_of_real_uid_adds_real_images_with_the_remaining_shares() -> None:
    """a |v - (b/a) c|^2 of generated x_0, and (1 - a) |v - ((1 - b)/(1 - a)) c|^2 of a batch from its own stream."""
    module = distillation(real_uid=RealUID(0.75, 0.5))
    x_t, c = torch.randn(2, 16, 2)
    t, rng = torch.rand(16), module.rng("real", 3)
    real_x_t, real_c, real_t = module.noised(Ring().draw(16, rng)[0], module.times, rng)
    v, real_v = module.online(x_t, t), module.online(real_x_t, real_t)
    expected = 0.75 * (v - c / 1.5).square().mean() + 0.25 * (real_v - 2 * real_c).square().mean()
    assert module.real_uid is not None
    assert_close(module.online_loss(x_t, c, t, None, *module.real_uid.batch(module, 3))[0], expected)


class Labelled(Ring):
    def draw(self, n: int, generator: Any) -> Any:
        return super().draw(n, generator)[0], torch.zeros(n, dtype=torch.int64)


class Wide(Ring):
    shape = (3,)


def test_real_images_of_another_shape_or_with_unknown_conditions_are_rejected() -> None:
    with pytest.raises(UserError, match=r"real images are of shape \(3,\), and generated ones of \(2,\)$"):
        gan(data=Wide())
    with pytest.raises(UserError, match=r"the real images have conditions, and the online network is not trained so$"):
        distillation(real_uid=RealUID(0.9, 0.9, data=Labelled()))
    assert gan(data=Labelled()).gan.shown(None) is None


@pytest.mark.parametrize("method, key", [("fgm_gan", "discriminator"), ("fgm_realdata", "real_uid")])
def test_missing_folder_of_real_images_is_one_line(method: str, key: str) -> None:
    node = "{_target_: fgm.data.folders.ImageFolder, directory: /no/pngs}"
    config = compose_experiment("mixture_fgm", [f"method={method}", f"method.{key}.data={node}"])
    with pytest.raises(UserError, match=r"^/no/pngs: no such folder of PNGs$"):
        build(config, Console(quiet=True))
