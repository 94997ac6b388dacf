"""The bare loop runs the operations of our cycle, and the recorded row follows from its seconds."""

import json
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import cycle
from benchmarks.cycle import CycleBench, PlainLoops, flops_of, frozen, peak_flops
from fgm.cli.build import build
from fgm.cli.config import compose_experiment
from fgm.cli.memory import untrained
from fgm.networks import VelocityModel
from fgm.training.distillation import Distillation
from fgm.utils.errors import UserError

TINY = ["network.width=16", "network.depth=1", "training.batch_size=4", "method.teacher_steps=3", "logger=csv"]
TINY += ["training.log_every_n_steps=3", 'teacher.overrides=["network.width=16","network.depth=1"]']


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> CycleBench:
    config = compose_experiment("digits_fgm", [*TINY, f"run_dir={tmp_path_factory.mktemp('bench')}"])
    with Path("/dev/null").open("w") as nowhere:
        module, run = build(untrained(config), Console(file=nowhere))
        bench = CycleBench(module, run, cycles=3, repetitions=2)  # type: ignore[arg-type]
        counted: list[float] = []
        step = module.training_step

        def watched(batch: Any) -> None:
            if len(counted) < 1:
                counted.append(flops_of(lambda: step(batch)))
            else:
                step(batch)

        module.training_step = watched  # type: ignore[method-assign]
        bench.results = {m.metric: m for m in bench.measure("untrained")}  # type: ignore[attr-defined]
        bench.counted = counted[0]  # type: ignore[attr-defined]
    return bench


def loops(bench: CycleBench) -> PlainLoops:
    return bench.loops(4)


def test_bare_loop_runs_exactly_the_operations_of_our_cycle(bench: CycleBench) -> None:
    assert flops_of(loops(bench).bare) == bench.counted  # type: ignore[attr-defined]
    assert bench.results["tflop_per_image"].value * 1e12 == bench.counted / 4  # type: ignore[attr-defined]


def test_naive_cycle_adds_a_sample_and_the_weight_gradients_of_two_networks(bench: CycleBench) -> None:
    label, shape = torch.zeros(4, dtype=torch.int64), bench.module.data.shape

    def through(net: VelocityModel, weights: bool) -> float:
        x_t = torch.randn(4, *shape, requires_grad=True)
        with frozen(net) if not weights else nullcontext():
            return flops_of(lambda: net(x_t, torch.full((4,), 0.5), label).sum().backward())

    online, net = bench.module.online, bench.module.generator.net
    with torch.no_grad():
        sample = flops_of(lambda: net(torch.randn(4, *shape), torch.full((4,), 0.5), label))
    weights = through(online, True) - through(online, False)
    online.zero_grad()
    assert flops_of(loops(bench).naive) - flops_of(loops(bench).bare) == sample + 2 * weights


def test_plain_loops_move_the_networks_and_leave_no_gradient(bench: CycleBench) -> None:
    module: Distillation = bench.module
    for loop in (loops(bench).bare, loops(bench).naive):
        before = [p.clone() for net in (module.generator, module.online, module.teacher) for p in net.parameters()]
        loop()
        after = [p for net in (module.generator, module.online, module.teacher) for p in net.parameters()]
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        third = len(moved) // 3
        assert any(moved[:third]) and any(moved[third : 2 * third]) and not any(moved[2 * third :])
        assert all(p.grad is None for p in after) and all(p.requires_grad for p in after[: 2 * third])
        assert not any(p.requires_grad for p in after[2 * third :])


def test_arms_alternate_between_the_cycles_of_one_training(bench: CycleBench) -> None:
    assert {name: len(each) for name, each in bench.times.items()} == dict.fromkeys(("cycle", "bare", "naive"), 2)
    assert int(bench.module.step) == len(bench) == 3 * 3 + 1
    metrics = {"cycle_over_bare", "cycle_over_naive", "images_per_s", "tflop_per_image", "sample_speedup"}
    assert set(bench.results) == metrics  # type: ignore[attr-defined]


def test_only_a_known_card_in_bf16_has_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_flops(cuda, "bf16-mixed") == 989e12
    assert peak_flops(cuda, "32-true") is None and peak_flops(torch.device("cpu"), "bf16-mixed") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some other card")
    assert peak_flops(cuda, "bf16-mixed") is None


def test_recorded_ratios_follow_from_the_recorded_seconds(tmp_path: Path) -> None:
    cycle.main([*TINY, "cycles=2", "repetitions=1", f"outputs={tmp_path}/out", f"experiments={tmp_path}"])
    row = json.loads((tmp_path / "bench" / "runs.jsonl").read_text())
    values, seconds = {r["metric"]: r["value"] for r in row["results"]}, row["seconds"]
    assert (row["experiment"], row["subject"]) == ("digits_fgm", "cycle") and row["images_seen"] == 4 * (2 * 2 + 1)
    assert values["cycle_over_bare"] == pytest.approx(median(seconds["cycle"]) / median(seconds["bare"]), rel=0.1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", ["experiment=digits_teacher", "training.micro_batches=2", "clock=gpu", "cycles=0"]
)
def test_what_cannot_be_timed_is_refused(arguments: str) -> None:
    with pytest.raises(UserError):
        cycle.main([arguments])
