"""One training step: which network each update moves, which velocities it reads, what a run draws and reports."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN
from torch import Tensor
from torch.testing import assert_close
from toy_trainings import (
    CONFIG,
    LINEAR,
    distillation,
    dying,
    last_state,
    last_weights,
    moved,
    network,
    pieces,
    place,
    run,
    same_bits,
    teacher_training,
    weights,
    whole_and_resumed,
)

from fgm.data.points import Ring
from fgm.flow import losses
from fgm.flow.times import Annealed, Uniform
from fgm.networks import VelocityModel
from fgm.networks.guidance import ClassifierFreeGuidance, Guidance, apply_guidance, unwrap_guidance
from fgm.networks.mlp import VelocityMLP
from fgm.training.distillation import Distillation
from fgm.training.optim import adam
from fgm.training.real_images import RealUID
from fgm.training.trainer import fit
from fgm.utils.errors import UserError
from fgm.utils.records import read_metrics

CONSTANT = replace(CONFIG, lr_decay_fraction=0.0)


def adapted(**options: Any) -> Distillation:
    torch.manual_seed(3)
    s = pieces(teacher=VelocityMLP(dim=2, width=16, depth=1), optimizer=partial(adam, lr=1e-2), t_star=0.9)
    return Distillation(**s | {"adapters": LINEAR} | options)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("real", [False, True], ids=["", "GAN, RealUID"])
def test_each_update_moves_its_own_network_and_no_other_gets_a_gradient(
    low_memory: bool, real: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    options: dict[str, Any] = {"discriminator": GAN, "real_uid": RealUID(0.9, 0.92)} if real else {}
    module = distillation(teacher=network(1), online_steps=2, low_memory=low_memory, **options)
    start, teacher = weights(module), deepcopy(module.teacher.state_dict())
    seen: list[tuple[str, set[str]]] = []
    update, backward = module.update, module.manual_backward

    def watched_update(name: str, losses: Any) -> Tensor:
        before = weights(module)
        norm = update(name, losses)
        seen.append((name, moved(before, weights(module))))
        return norm

    def watched_backward(loss: Tensor) -> None:
        backward(loss)
        nets = {"generator": module.generator, "online": module.online, "gan": module.gan, "teacher": module.teacher}
        seen.append(
            ("backward", {n for n, net in nets.items() if net and any(p.grad is not None for p in net.parameters())})
        )

    monkeypatch.setattr(module, "update", watched_update)
    monkeypatch.setattr(module, "manual_backward", watched_backward)
    run(module, tmp_path)
    updates = [("online", "online")] * 2 + [("discriminator", "gan")] * real + [("generator", "generator")]
    assert seen == [entry for name, net in updates for entry in (("backward", {net}), (name, {net}))] * CONFIG.max_steps
    assert all(p.grad is None for p in (*module.parameters(), *module.teacher.parameters()))
    assert all(not torch.equal(start[name], p) for name, p in module.named_parameters()), "every tensor has moved"
    assert all(torch.equal(w, teacher[name]) for name, w in module.teacher.state_dict().items())
    assert module.trainer.global_step == CONFIG.max_steps == int(module.step), "it counts generator updates"
    assert module.images_seen == CONFIG.max_steps * CONFIG.batch_size
    nets = {"generator", "online", "ema", "step"} | ({"gan"} if real else set())
    assert {name.split(".")[0] for name in last_weights(tmp_path)} == nets, "the teacher is in no checkpoint"
    assert len(last_state(tmp_path)["optimizer_states"]) == 2 + real


def test_online_network_has_an_optimizer_of_its_own(tmp_path: Path) -> None:
    for options, rates in (({}, [1e-3, 1e-3]), ({"online_optimizer": partial(adam, lr=5e-3)}, [1e-3, 5e-3])):
        module = run(distillation(config=CONSTANT, **options), tmp_path / str(rates))
        assert [o.param_groups[0]["lr"] for o in module.optimizers()] == rates  # type: ignore[union-attr]


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(("detach", "passes"), [(False, 1), ("teacher", 0), (True, 0)])
def test_detached_teacher_has_no_backward_pass(low_memory: bool, detach: Any, passes: int, tmp_path: Path) -> None:
    teacher, backward = network(1), []
    teacher.embed.register_full_backward_hook(lambda *_: backward.append(1))
    net = partial(network, 2)
    run(distillation(teacher=teacher, network=net, detach=detach, low_memory=low_memory), tmp_path)
    assert len(backward) == passes * CONFIG.max_steps


@pytest.mark.parametrize("options", [{"online_init": "random"}, {"adapters": LINEAR}])
def test_ida_brings_the_online_network_nearer_by_its_decay_every_step(options: dict[str, Any], tmp_path: Path) -> None:
    """No optimizer moves: online_n - g = decay^n (online_0 - g)."""

    def still(net: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(net.parameters(), lr=0.0)

    inits = {"generator_init": "teacher", "online_init": "teacher"}
    module = distillation(**{"teacher": network(1), "optimizer": still, "ida_decay": 0.8} | inits | options)
    goal, start = ([p.clone() for p in net.parameters()] for net in (module.generator.net, module.online))
    run(module, tmp_path)
    for g, before, after in zip(goal, start, module.online.parameters(), strict=True):
        assert_close(after - g, 0.8**CONFIG.max_steps * (before - g), rtol=1e-4, atol=1e-6)


def test_ida_needs_networks_of_one_architecture(tmp_path: Path) -> None:
    wider = partial(VelocityMLP, dim=2, width=32, depth=1)
    module = distillation(teacher=network(1), network=wider, generator_init="teacher", ida_decay=0.9)
    with pytest.raises(UserError, match=r"method.ida_decay = 0.9: .* not of one architecture"):
        run(module, tmp_path)


LEVERS = {
    "detach": "teacher", "ida_decay": 0.9, "times": Annealed(Uniform(0.2, 0.4), Uniform()), "online_lr_ratio": 0.5,
    "teacher": network(1), "teacher_steps": 3, "discriminator": partial(GAN, teacher_samples=20),
}  # fmt: skip
RESUMED: dict[str, Any] = {
    "online steps": partial(distillation, online_steps=2),
    "teacher": teacher_training,
    "GAN and RealUID": lambda: distillation(
        teacher=network(1), discriminator=partial(GAN, start_step=2, r1_weight=0.5), real_uid=RealUID(0.9, 0.92)
    ),
    "four steps": partial(distillation, steps=4),
    "adapters": adapted,
    "levers": partial(distillation, **LEVERS),
    "fused": partial(distillation, optimizer=partial(adam, lr=1e-3, beta_1=0.5, kernel="fused")),
}


@pytest.mark.parametrize("name", RESUMED)
def test_resume_is_bit_exact(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    whole, resumed = whole_and_resumed(RESUMED[name], tmp_path, monkeypatch)
    assert int(resumed.step) == resumed.trainer.global_step == CONFIG.max_steps and same_bits(whole, resumed)
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()
    assert [row["step"] for row in read_metrics(tmp_path / "parts" / "metrics.csv")] == ["3", "7"]


def test_short_training_logs_at_its_end() -> None:
    assert replace(CONFIG, max_steps=3, log_every_n_steps=50).log_every_n_steps == 3


def test_seconds_of_a_resumed_run_are_those_of_all_its_parts(tmp_path: Path, monkeypatch: Any) -> None:
    with dying(module := distillation(), 6, monkeypatch):
        run(module, tmp_path, every=4)
    saved = last_state(tmp_path)["callbacks"]
    timing = fit(distillation(), place(tmp_path, every=4))
    assert timing["evaluate_s"] > saved["EvaluationCallback"]["seconds"] > 0
    assert sum(timing.values()) > saved["Timer"]["time_elapsed"]["train"] > 0


def test_given_teacher_is_trained_further_in_a_copy(tmp_path: Path) -> None:
    teacher = network(5)
    module = teacher_training(teacher=teacher)
    start = weights(module)
    assert all(torch.equal(start[f"net.{name}"], tensor) for name, tensor in teacher.state_dict().items())
    assert moved(start, weights(run(module, tmp_path))) == {"net", "ema", "step"}
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), network(5).parameters(), strict=True))


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    plain, measured = run(distillation(), tmp_path / "a"), run(distillation(), tmp_path / "b", every=4)
    assert (tmp_path / "b" / "samples" / "000004.png").exists() and same_bits(plain, measured)


def test_real_images_are_drawn_only_if_real_uid_uses_them(tmp_path: Path, monkeypatch: Any) -> None:
    used = run(distillation(real_uid=RealUID(0.9, 0.92)), tmp_path / "used")
    monkeypatch.setattr(Ring, "draw", lambda *_: pytest.fail("drew data"))
    plain, off = (run(distillation(real_uid=uid), tmp_path / str(uid)) for uid in (None, RealUID(1.0, 1.0)))
    assert same_bits(plain, off) and moved(weights(plain), weights(used)) == {"generator", "online", "ema"}


# guidance

SCALE = 3.0


def labelled(seed: int) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=2, width=16, depth=1, num_classes=3)


def guided_by_hand(net: VelocityModel, x_t: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
    v_null = net(x_t, t, torch.full_like(labels, 3))
    return v_null + scale * (net(x_t, t, labels) - v_null)


@pytest.mark.parametrize(
    "guidance, teacher_scale, online_scale", [("none", 1, 1), ("teacher", SCALE, 1), ("long_and_short", SCALE, SCALE)]
)
def test_guidance_applies_to_the_velocities_of_both_updates(
    guidance: Guidance, teacher_scale: float, online_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the online loss is |v - c|^2 of the velocity that the generator update evaluates, in one call each."""
    m = Distillation(**pieces(teacher=ClassifierFreeGuidance(labelled(1), SCALE)), t_star=0.9, guidance=guidance)
    noise = torch.Generator().manual_seed(0)
    x_0, t, labels = torch.randn(6, 2, generator=noise), torch.rand(6, generator=noise), torch.arange(6) % 3
    u, v = (net(x_0, t, labels) for net in m.velocities)
    assert_close(u, guided_by_hand(unwrap_guidance(m.teacher), x_0, t, labels, teacher_scale))
    assert_close(v, guided_by_hand(m.online, x_0, t, labels, online_scale))
    calls: list[int] = []
    m.online.register_forward_hook(lambda net, arguments, output: calls.append(len(output)))
    x_t, c, t = m.noised(x_0, m.online_times, m.rng("online", 0))
    loss, _ = m.online_loss(x_t, c, t, labels)
    m.mean_generator_loss(x_0.requires_grad_(), labels, t, x_0.detach())
    assert calls == [12 if guidance == "long_and_short" else 6] * 2
    expected = losses.flow_matching(guided_by_hand(m.online, x_t, t, labels, online_scale), c).mean()
    for a, b in zip(*(torch.autograd.grad(x, list(m.online.parameters())) for x in (loss, expected)), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_guidance_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(ValueError, match="scale from the teacher"):
        apply_guidance("long_and_short", labelled(1), labelled(2))
    with pytest.raises(ValueError, match="none, teacher, long_and_short"):
        apply_guidance("long", labelled(1), labelled(2))  # type: ignore[arg-type]


# several steps


def test_trained_step_is_drawn_evenly_and_is_the_same_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(rank: int) -> tuple[list[int], Tensor]:
        module = distillation(steps=4)
        monkeypatch.setattr(Distillation, "global_rank", rank)
        eps = [module.latents(step)[2] for step in range(200)]
        return [e.shape[1] for e in eps if e is not None], torch.cat([e for e in eps if e is not None], 1)

    (counts, eps), (others, other_eps) = drawn(0), drawn(1)
    assert counts == others and not torch.equal(eps, other_eps)
    assert len(counts) == 200 and all(30 < counts.count(k) < 70 for k in range(4))


def test_samplers_of_a_four_step_generator_need_four_evaluations() -> None:
    samplers = distillation(steps=4).samplers()
    assert [(s.nfe, s.weights) for s in samplers] == [(4, "ema"), (4, "raw"), (4, "start"), (50, "teacher")]
