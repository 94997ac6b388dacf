"""The adversary's turns: who moves when, what each pays, and that there is none before its first cycle."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN, Captioned, Pictures, dit, gan, mmdit, still
from torch import Tensor, nn
from torch.testing import assert_close
from toy_trainings import SCHEDULE, distillation, moved, network, run, same_bits, setting, weights, whole_and_resumed

from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.training.checkpointing import LAST
from fgm.training.distillation import Distillation
from fgm.training.real_images import RealData


def states(module: Distillation) -> list[dict[str, Tensor]]:
    """Weights after each cycle of a run to be."""
    seen: list[dict[str, Tensor]] = []
    step = module.training_step

    def watched(batch: Any) -> None:
        step(batch)
        seen.append(weights(module))

    module.training_step = watched  # type: ignore[method-assign]
    return seen


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


def test_the_term_is_of_fresh_noise_in_each_cycle() -> None:
    module = gan()
    adversary, x_0 = still(module.adversary, 1.0, 0.7), module.generate(0)[0].detach()
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
def test_a_guided_mmdit_is_distilled_with_both_terms(features: str, tmp_path: Path) -> None:
    """All moves but the teacher and the last block's text queries, which lead nowhere; guidance hides no block."""
    teacher, schedule = mmdit(), replace(SCHEDULE, cycles=3, batch_size=4, warmup=0, decay=0.0)
    frozen = {name: p.clone() for name, p in teacher.named_parameters()}
    adversary = partial(
        GAN, blocks=["transformer_blocks.0", "transformer_blocks.2"], features=features, r1_weight=1.0, r1_at="x_t"
    )
    s = setting(
        net=mmdit(), teacher=ClassifierFreeGuidance(teacher, 3.0), data=Captioned(tells=True), schedule=schedule
    )
    module = Distillation(s, 0.9, adversary=adversary, real_data=partial(RealData, a=0.9, b=0.92))
    before = weights(module)
    run(module, tmp_path)
    after = weights(module)
    unmoved = {name for name, _ in module.named_parameters() if torch.equal(before[name], after[name])}
    assert {name.split("transformer_blocks.2.attn.")[-1] for name in unmoved} == {
        "add_q_proj.weight",
        "add_q_proj.bias",
    }
    assert all(torch.equal(frozen[name], p) for name, p in teacher.named_parameters())
    assert [descent.skipped for descent in module.descents] == [0, 0, 0]


@pytest.mark.parametrize("features", ["online", "teacher"])
def test_a_resumed_run_is_bit_equal_with_an_adversary_and_real_data(
    features: str, tmp_path: Path, monkeypatch: Any
) -> None:
    def fresh() -> Distillation:
        adversary = partial(GAN, features=features, from_cycle=2, r1_weight=0.5)
        return distillation(
            teacher=network(1), adversary=adversary, real_data=partial(RealData, a=0.9, b=0.92), online_turns=2
        )

    whole, resumed = whole_and_resumed(fresh, tmp_path, monkeypatch)
    assert int(resumed.cycle) == resumed.trainer.global_step == SCHEDULE.cycles and same_bits(whole, resumed)


def test_a_non_finite_discriminator_gradient_is_skipped_and_counted(tmp_path: Path, monkeypatch: Any) -> None:
    module, bad = gan(), {2, 5}
    draw = module.draw

    def broken(data: Any, noise: Any) -> Any:
        x_0, condition = draw(data, noise)
        return x_0 * (float("nan") if int(module.cycle) in bad else 1), condition

    monkeypatch.setattr(module, "draw", broken)
    run(module, tmp_path)
    assert [descent.skipped for descent in module.descents] == [0, 0, 2]
    assert all(p.isfinite().all() for p in module.parameters())
