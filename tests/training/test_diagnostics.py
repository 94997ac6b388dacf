"""Warnings of trouble: oscillation, spikes and drift, tensors that do not move, and gradients that are not finite."""

import io
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from rich.console import Console
from tiny_runs import Said, refused
from torch import Tensor, nn
from toy_trainings import (
    CONFIG,
    LINEAR,
    console_output,
    distillation,
    last_state,
    last_weights,
    network,
    pieces,
    run,
    same_bits,
    whole_and_resumed,
)

from fgm.networks.lora import SharedBase
from fgm.training import trainer
from fgm.training.callbacks import CHECKED_STEPS, bit_sums
from fgm.training.checkpointing import LAST, PREVIOUS, saved_step
from fgm.training.diagnostics import REMEDIES, SPIKE, WINDOW, Diagnostics, drifts, oscillates, residuals, spikes
from fgm.training.discriminator import GANTerm
from fgm.training.distillation import Distillation
from fgm.training.module import MAX_SKIPS, DivergenceError
from fgm.training.optim import adam
from fgm.utils.random import keyed_generator
from fgm.utils.records import read_metrics

FILE = "metrics.csv"
OFTEN = replace(CONFIG, warmup_steps=1, log_every_n_steps=1, save_every_n_steps=3)


def test_residuals_of_a_line_vanish_and_have_no_mean_or_slope() -> None:
    assert residuals([3 - 0.5 * i for i in range(9)]) == pytest.approx([0] * 9)
    r = residuals([math.sin(i * i) for i in range(9)])
    assert sum(r) == pytest.approx(0) and sum(i * v for i, v in enumerate(r)) == pytest.approx(0)


SERIES = {
    "alternating": ([5 + (-1) ** i for i in range(WINDOW)], True),
    "alternating on a slope": ([100 - 3 * i + (-1) ** i for i in range(WINDOW)], True),
    "growing waves": ([1.4**i * math.cos(math.pi * i / 2 + 0.3) for i in range(WINDOW)], True),
    "steady waves of six entries": ([math.cos(math.pi * i / 3) for i in range(WINDOW)], False),
    "decay": ([math.exp(-i / 4) for i in range(WINDOW)], False),
    "explosion": ([2.0**i for i in range(WINDOW)], False),
    "constant": ([0.1] * WINDOW, False),
    "too few entries": ([(-1.0) ** i for i in range(WINDOW - 1)], False),
    "not a number": ([float("nan")] * WINDOW, False),
}


@pytest.mark.parametrize("name", SERIES)
def test_oscillation_is_not_trend_or_explosion(name: str) -> None:
    y, expected = SERIES[name]
    assert oscillates(y) is expected


def test_noise_is_rarely_an_oscillation() -> None:
    windows = torch.randn(1000, WINDOW, generator=keyed_generator("noise", index=0)).tolist()
    assert sum(map(oscillates, windows)) <= 10


def test_spike_is_relative_to_the_median_of_earlier_entries() -> None:
    before = [1.0, 2.0, 3.0, 2.0, 1.0]
    assert spikes([*before, 2 * SPIKE + 1]) and not spikes([*before, 2 * SPIKE])
    assert not spikes([*before, 100.0, 2.0]), "a spike hardly moves the median"
    assert spikes([float("nan")]) and spikes([1.0, float("inf")]) and not spikes([1.0, 1e9])


@pytest.mark.parametrize(
    "start, mean_std, drifted",
    [
        ([1.0, 4.0], (3.0, 4.0), False), ([1.0, 4.0], (3.1, 4.0), True), ([1.0, 4.0], (-1.1, 4.0), True),
        ([1.0, 4.0], (math.nan, 4.0), True), ([1.0, 4.0], (1.0, 2.0), False), ([1.0, 4.0], (1.0, 1.9), True),
        ([1.0, 4.0], (1.0, 6.0), False), ([1.0, 4.0], (1.0, 6.1), True),
        ([0.0, 1.0], (0.0, 0.5), False), ([0.0, 1.0], (0.0, 4.0), False), ([0.0, 1.0], (0.0, 6.0), False),
        ([0.0, 1.0], (0.0, 0.4), True), ([0.0, 1.0], (0.0, 6.1), True),
    ],
)  # fmt: skip
def test_drift_is_measured_in_the_std_of_start_and_data(
    start: list[float], mean_std: tuple[float, float], drifted: bool
) -> None:
    """A posterior mean, whose std is below the data's, may gain it."""
    assert drifts(*mean_std, start, data_std=4.0) is drifted


def test_warning_is_printed_once_per_crossing_with_its_remedy() -> None:
    console = Console(file=io.StringIO(), width=400)
    diagnostics, flags = Diagnostics(console), []
    for step, norm in enumerate([1.0] * 6 + [99.0, 99.0, 1.0, 99.0]):
        signs = diagnostics.watch({"generator_grad_norm": norm}, warm=True, data_std=1.0)
        diagnostics.warn(signs, step, speak=True)
        flags.append(bool(signs["gradient_spike"]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert flags == [False] * 6 + [True, True, False, True] and "drift" not in signs
    assert [line.split(":")[0] for line in lines] == ["warning at step 6", "warning at step 9"]
    assert all("generator_grad_norm 99" in line and REMEDIES["gradient_spike"] in line for line in lines)


def test_training_is_bit_equal_without_diagnostics(tmp_path: Path, monkeypatch: Any) -> None:
    with_it = run(distillation(config=OFTEN), tmp_path / "with")
    monkeypatch.setattr(trainer, "Diagnostics", lambda console: Callback())
    assert same_bits(with_it, run(distillation(config=OFTEN), tmp_path / "without"))
    for a, b in zip(read_metrics(tmp_path / "with" / FILE), read_metrics(tmp_path / "without" / FILE), strict=True):
        assert {key: value for key, value in a.items() if not key.startswith("warning/")} == b


def test_drift_of_a_run_is_printed_and_flagged(tmp_path: Path) -> None:
    printed = console_output(distillation(config=OFTEN, optimizer=partial(adam, lr=1.0)), tmp_path)
    assert printed.count(": drift, sample_mean") == 1 and "lower optimizer.lr" in printed
    flags = [float(row["warning/drift"]) for row in read_metrics(tmp_path / FILE)]
    assert flags[0] == 0 and flags[-1] == 1 and set(flags) == {0.0, 1.0}
    assert "warning/" not in printed, "flags are for the loggers"


def test_resumed_run_has_the_same_warnings_and_skips(tmp_path: Path, monkeypatch: Any) -> None:
    """Killed after one of three skips: the same counts, log, weights and windows as an undisturbed run."""
    whole, resumed = whole_and_resumed(lambda: broken({2, 6, 7}, OFTEN), tmp_path, monkeypatch, step=7)
    ours, theirs = (last_state(tmp_path / name)["callbacks"]["Diagnostics"] for name in ("parts", "whole"))
    assert str(ours) == str(theirs) and len(ours["window"]["mismatch"]) == CONFIG.max_steps
    assert resumed.skipped == whole.skipped and whole.skipped["online"][0] == 3
    assert (tmp_path / "whole" / FILE).read_text() == (tmp_path / "parts" / FILE).read_text()
    assert same_bits(whole, resumed)


# gradients that are not finite

GOOD = 3  # steps before the trouble
LONG = replace(CONFIG, max_steps=MAX_SKIPS + 9, save_every_n_steps=1, log_every_n_steps=1)


def broken(bad: Any, config: Any = LONG) -> Distillation:
    """The online network's gradient is not finite in the steps `bad`; the generator's always is."""
    module = distillation(config=config)
    update = module.online_update

    def online_update(x_0: Tensor, condition: Any, index: int) -> Any:
        return update(x_0 * float("nan") if index in bad else x_0, condition, index)

    module.online_update = online_update  # type: ignore[method-assign]
    return module


def test_divergence_ends_a_run_in_one_line_and_keeps_a_good_checkpoint(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = broken(range(GOOD, 99))
    line = refused(lambda _: run(module, tmp_path), [], capsys, monkeypatch)
    assert line == (
        f"error: online: {MAX_SKIPS} non-finite gradients in a row: lower optimizer.lr; "
        f"{tmp_path / LAST}: the one of step {GOOD} remains\n"
    )
    assert [saved_step(tmp_path / path) for path in (LAST, PREVIOUS)] == [GOOD, GOOD - 1]
    assert int(module.step) == GOOD + MAX_SKIPS - 1, "the generator continued, and its checkpoints would not be good"
    assert all(tensor.isfinite().all() for tensor in last_weights(tmp_path).values())
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # no optimizer has stepped yet
def test_skips_in_a_row_are_counted_across_a_resume(tmp_path: Path) -> None:
    module, other = broken(()), broken(range(99))
    module.skipped["online"] = [30, MAX_SKIPS - 1]
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert module.skipping and other.skipping and other.skipped["online"][0] == 30
    with pytest.raises(DivergenceError, match="20 non-finite"):
        run(other, tmp_path)
    assert int(other.step) == 0


def test_run_resumes_from_a_kept_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    module, again = (distillation(config=replace(CONFIG, keep_every_n_steps=3)) for _ in range(2))
    run(module, tmp_path)
    folder = (tmp_path / LAST).parent
    assert sorted(p.name for p in folder.iterdir()) == ["00000003.ckpt", "00000006.ckpt", "last.ckpt", "previous.ckpt"]
    assert [saved_step(folder / f"0000000{n}.ckpt") for n in (3, 6)] == [3, 6] and saved_step(tmp_path / LAST) == 8
    (folder / "00000003.ckpt").replace(tmp_path / LAST)
    run(again, tmp_path)
    assert same_bits(module, again)


# tensors that do not move


def unused(run_dir: Path, optimizer: Any = None, **options: Any) -> list[str]:
    """The warnings of a run, on adapters by default."""
    teacher = network(3)
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)  # its head starts at zero
    config = replace(CONFIG, max_steps=CHECKED_STEPS + 1)
    s = pieces(teacher=teacher, config=config, optimizer=optimizer or partial(adam, lr=1e-3))
    module = Distillation(**s, t_star=0.9, **{"adapters": LINEAR} | options)
    return [line for line in console_output(module, run_dir).splitlines() if "moves" in line or "moved" in line]


def test_no_warning_if_all_tensors_move_though_not_at_once(tmp_path: Path) -> None:
    """A of an adapter rests in the first update, since B starts at zero; so does a discriminator that starts late."""
    assert unused(tmp_path, discriminator=partial(GANTerm, blocks=["blocks.0"], start_step=5)) == []


def test_networks_with_vanishing_updates_are_named_after_the_first_one(tmp_path: Path) -> None:
    lines = unused(tmp_path, partial(adam, lr=1e-12), adapters=None)
    many = len(list(network().parameters()))
    for line, name in zip(lines, ("generator", "online"), strict=True):
        text = f"{many} of {many} trainable tensors of the {name} have not moved in 1 update: {name}."
        assert line.startswith(f"warning at step 1: {text}") and line.endswith(f"{many - 3} more")


def test_layer_whose_adapter_gets_no_gradient_is_named_after_ten_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_adapter = SharedBase.add_adapter

    def cut(self: SharedBase, name: str, *call: Any) -> Any:
        output = add_adapter(self, name, *call)
        return call[-1] if name == "blocks.0.layers.2" else output

    monkeypatch.setattr(SharedBase, "add_adapter", cut)
    names = [f"generator.net.adapter.blocks.0.layers.2.lora_{m}.weight" for m in "AB"]
    assert unused(tmp_path)[0] == (
        f"warning at step {CHECKED_STEPS}: 2 of 8 trainable tensors of the generator have not moved in "
        f"{CHECKED_STEPS} updates: {', '.join(names)}"
    )


def test_optimizer_of_other_weights_is_reported_before_the_first_step(tmp_path: Path) -> None:
    def of_others(net: nn.Module) -> torch.optim.Optimizer:
        return adam(nn.Linear(2, 2), lr=1e-3)

    (line,) = unused(tmp_path, of_others)
    assert line.startswith("warning at step 0: no optimizer moves online.adapter.") and line.endswith(" and 13 more")


def test_bit_sums_see_one_bit_in_any_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.ones(5, dtype=dtype)
        y = x.clone()
        y.view(torch.uint8)[0] ^= 1
        assert bit_sums([x]) != bit_sums([y]) and bit_sums([x, y]) == [*bit_sums([x]), *bit_sums([y])]
