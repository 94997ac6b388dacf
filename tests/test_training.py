"""The training cycle: who moves when, what is counted, and that a resumed run is the run it would have been."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fgm.training.descend import PATIENCE, DivergenceError
from killed_runs import dying
from torch import Tensor
from toy_trainings import (
    SCHEDULE,
    distillation,
    moved,
    network,
    place,
    run,
    same_bits,
    setting,
    weights,
    whole_and_resumed,
)

from fgm.data.points import Ring
from fgm.flow.times import Uniform
from fgm.networks import VelocityModel
from fgm.networks.mlp import VelocityMLP
from fgm.training import checkpoints, initialise
from fgm.training.distillation import Distillation
from fgm.training.ema import frozen_copy, update_ema
from fgm.training.flow_matching import FlowMatching
from fgm.training.module import Method
from fgm.training.optim import Joint, adam, adamw, muon, scheduled
from fgm.training.trainer import fit
from fgm.utils.records import read_metrics


@pytest.mark.parametrize(
    "which, turn",
    [
        ("online", lambda m, x: m.online_turn(x.detach(), None, 0)),
        ("generator", lambda m, x: m.generator_turn(x, None, 0)),
    ],
)
def test_each_turn_moves_only_its_own_network(
    which: str, turn: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    module = distillation()
    seen: list[set[str]] = []

    def watched_step(batch: Any) -> None:
        before = weights(module)
        optimizer = module.optimizers()[which == "online"]
        with module.toggled_optimizer(module.optimizers()[0]):
            x_0, _ = module.generate(0)
        with module.toggled_optimizer(optimizer):
            turn(module, x_0)
        seen.append(moved(before, weights(module)))

    monkeypatch.setattr(module, "training_step", watched_step)
    run(module, tmp_path)
    assert seen == [{which}] * SCHEDULE.cycles


def test_each_network_has_the_rate_of_its_own_optimizer(tmp_path: Path) -> None:
    module = distillation(online_optimizer=partial(adam, lr=5e-3), schedule=replace(SCHEDULE, decay=0.0))
    run(module, tmp_path)
    assert [o.param_groups[0]["lr"] for o in module.optimizers()] == [1e-3, 5e-3]  # type: ignore[union-attr]
    plain = distillation(schedule=replace(SCHEDULE, decay=0.0))
    run(plain, tmp_path / "plain")
    assert [o.param_groups[0]["lr"] for o in plain.optimizers()] == [1e-3, 1e-3]  # type: ignore[union-attr]


def test_no_gradient_is_computed_for_a_network_that_is_not_stepped(tmp_path: Path, monkeypatch: Any) -> None:
    module = distillation(online_turns=2)
    teacher = network(1)
    module.unregistered = (teacher,)
    touched: list[tuple[bool, bool, bool]] = []
    backward = module.manual_backward

    def watched(loss: Tensor) -> None:
        backward(loss)
        nets = (module.generator, module.online, teacher)
        touched.append(tuple(any(p.grad is not None for p in net.parameters()) for net in nets))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "manual_backward", watched)
    run(module, tmp_path)
    online, generator = (False, True, False), (True, False, False)
    assert touched == [online, online, generator] * SCHEDULE.cycles
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("online_turns", [1, 3])
def test_global_step_counts_generator_updates(online_turns: int, tmp_path: Path) -> None:
    module = distillation(online_turns=online_turns)
    run(module, tmp_path)
    assert module.trainer.global_step == SCHEDULE.cycles == int(module.cycle)
    assert module.images_seen == SCHEDULE.cycles * SCHEDULE.batch_size


@pytest.mark.parametrize("kind", ["distillation", "teacher"])
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    def fresh() -> Method:
        return distillation(online_turns=2) if kind == "distillation" else FlowMatching(setting(teacher=None))

    whole, resumed = whole_and_resumed(fresh, tmp_path, monkeypatch)
    assert int(resumed.cycle) == resumed.trainer.global_step == SCHEDULE.cycles and same_bits(whole, resumed)
    steps = [line.split(",") for line in (tmp_path / "parts" / "metrics.csv").read_text().splitlines()]
    column = steps[0].index("step")
    assert [row[column] for row in steps[1:]] == ["3", "7"]


def test_a_training_shorter_than_log_every_logs_at_its_end(tmp_path: Path) -> None:
    module = distillation(schedule=replace(SCHEDULE, cycles=3, log_every=50))
    run(module, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["2"]


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path: Path, monkeypatch: Any) -> None:
    slow, turn = distillation(), Distillation.online_turn

    def slowly(*inputs: Any) -> Any:
        time.sleep(0.1)
        return turn(*inputs)

    with monkeypatch.context() as first, dying(slow, 6, first):
        first.setattr(Distillation, "online_turn", slowly)
        run(slow, tmp_path, every=4)
    held = torch.load(tmp_path / checkpoints.LAST, weights_only=True)["callbacks"]
    timing = fit(distillation(), place(tmp_path, every=4))
    assert held["Timer"]["time_elapsed"]["train"] > 0.5 and held["Evaluate"]["seconds"] > 0
    assert timing["evaluate_s"] > held["Evaluate"]["seconds"]
    assert sum(timing.values()) > held["Timer"]["time_elapsed"]["train"]


def test_a_teacher_that_is_given_is_trained_on_and_left_as_it_was(tmp_path: Path) -> None:
    teacher = network(5)
    module = FlowMatching(setting(teacher=teacher))
    start = weights(module)
    assert all(torch.equal(start[f"net.{name}"], tensor) for name, tensor in teacher.state_dict().items())
    assert moved(start, weights(run(module, tmp_path))) == {"net", "ema", "cycle"}
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), network(5).parameters(), strict=True))


def test_measuring_leaves_training_as_it_was(tmp_path: Path) -> None:
    plain, measured = run(distillation(), tmp_path / "a"), run(distillation(), tmp_path / "b", every=2)
    assert (tmp_path / "b" / "samples" / "000002.png").exists() and same_bits(plain, measured)


def test_the_teacher_is_in_no_checkpoint_and_loads_without_executing_anything(tmp_path: Path) -> None:
    run(distillation(), tmp_path)
    state = torch.load(tmp_path / checkpoints.LAST, weights_only=True)
    assert {name.split(".")[0] for name in state["state_dict"]} == {"generator", "online", "ema", "cycle"}
    assert len(state["optimizer_states"]) == 2


def test_distillation_sees_no_data(tmp_path: Path, monkeypatch: Any) -> None:
    module = distillation()
    monkeypatch.setattr(Ring, "draw", lambda *_: pytest.fail("distillation drew data"))
    run(module, tmp_path)
    assert int(module.cycle) == SCHEDULE.cycles


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_a_non_finite_gradient_is_skipped_and_counted_and_many_stop_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    module = distillation()
    turn, bad = module.generate, {2, 5}
    monkeypatch.setattr(
        module, "generate", lambda cycle: (turn(cycle)[0] * (float("nan") if cycle in bad else 1), None)
    )
    run(module, tmp_path / "a")
    assert [descent.skipped for descent in module.descents] == [2, 2]
    assert all(p.isfinite().all() for p in module.parameters())
    hopeless = distillation(schedule=replace(SCHEDULE, cycles=PATIENCE + 1))
    monkeypatch.setattr(hopeless, "generate", lambda cycle: (module.generator(torch.full((4, 2), float("nan"))), None))
    with pytest.raises(DivergenceError, match="online network: 20 non-finite"):
        run(hopeless, tmp_path / "b")


def test_ema_after_n_steps_is_the_geometric_sum() -> None:
    ema, net = frozen_copy(network(0)), network(1)
    start = [p.clone() for p in ema.parameters()]
    for _ in range(5):
        update_ema(ema, net, 0.8)
    for a, b, c in zip(start, net.parameters(), ema.parameters(), strict=True):
        torch.testing.assert_close(c, 0.8**5 * a + (1 - 0.8**5) * b)


def test_the_learning_rate_grows_holds_and_falls_to_zero() -> None:
    optimizer = adamw(network(), lr=1.0)
    schedule, rates = scheduled(optimizer, cycles=10, warmup=1, decay=0.5), []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_muon_takes_the_matrices_of_the_blocks_and_its_state_survives() -> None:
    def stepped(net: VelocityMLP, optimizer: Any, times: int) -> list[Tensor]:
        for _ in range(times):
            optimizer.zero_grad()
            net(torch.ones(4, 2), torch.full((4,), 0.5)).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    net, twin = network(), network()
    optimizer = muon(net, lr=0.01)
    assert isinstance(optimizer, Joint)
    assert sum(p.numel() for p in optimizer.parts[0].param_groups[0]["params"]) == sum(
        p.numel() for p in net.blocks.parameters() if p.ndim == 2
    )
    stepped(net, optimizer, 3)
    twin.load_state_dict(net.state_dict())
    restored = muon(twin, lr=0.5)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    for a, b in zip(stepped(net, optimizer, 2), stepped(twin, restored, 2), strict=True):
        assert torch.equal(a, b)


def test_a_network_fitted_to_an_exact_teacher_is_close_to_it_and_a_copy_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(initialise, "FIT_ITERATIONS", 300)
    monkeypatch.setattr(initialise, "FIT_POOL", 1000)
    s = setting(net=VelocityMLP(dim=2, width=64, depth=2))
    x, t = torch.randn(500, 2), Uniform(0.3, 1.0).sample(500, torch.Generator().manual_seed(0))
    assert s.teacher is not None
    exact = s.teacher(x, t)
    error = (initialise.initialised("fit", s)(x, t) - exact).square().mean() / exact.square().mean()
    assert error < 0.1
    with pytest.raises(ValueError, match="has no weights to copy"):
        initialise.initialised("teacher", s)


def test_a_network_is_fitted_under_what_its_data_ask_for(monkeypatch: Any) -> None:
    """Captions have no classes to be balanced over: they are the data's own."""
    heard: list[Tensor | None] = []

    class Captioned(Ring):
        def conditions(self, n: int, generator: torch.Generator) -> Tensor:  # type: ignore[override]
            return torch.randint(9, (n,), generator=generator)

    class Listening(VelocityModel):
        shape, num_classes = (2,), 0

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            heard.append(condition)
            return -self.scale * x_t

    for name, value in {"FIT_ITERATIONS": 1, "FIT_POOL": 8, "FIT_STEPS": 1}.items():
        monkeypatch.setattr(initialise, name, value)
    initialise.initialised("fit", setting(data=Captioned(), net=Listening(), teacher=Listening()))
    assert len(heard) == 3 and all(condition is not None for condition in heard)
