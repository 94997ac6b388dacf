"""Warnings come when trouble begins, once, and training does not notice them."""

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
from toy_trainings import SCHEDULE, distillation, run, said, same_bits, whole_and_resumed

from fgm.training import checkpoints
from fgm.training import fit as fitting
from fgm.training.diagnostics import REMEDIES, SPIKE, WINDOW, WarningSigns, drifts, oscillates, residuals, spikes
from fgm.training.distillation import Distillation
from fgm.training.optim import adam
from fgm.utils.random import keyed_generator
from fgm.utils.records import read_metrics

FILE = "metrics.csv"
OFTEN = replace(SCHEDULE, warmup=1, log_every=1, save_every=3)


def watched(lr: float = 1e-3) -> Distillation:
    return distillation(schedule=OFTEN, optimizer=partial(adam, lr=lr))


# what counts as trouble


def test_residuals_of_a_line_vanish_and_have_no_mean_or_slope() -> None:
    assert residuals([3 - 0.5 * i for i in range(9)]) == pytest.approx([0] * 9)
    r = residuals([math.sin(i * i) for i in range(9)])
    assert sum(r) == pytest.approx(0) and sum(i * v for i, v in enumerate(r)) == pytest.approx(0)


SERIES = {
    "to and fro": ([5 + (-1) ** i for i in range(WINDOW)], True),
    "to and fro on a slope": ([100 - 3 * i + (-1) ** i for i in range(WINDOW)], True),
    "growing waves": ([1.4**i * math.cos(math.pi * i / 2 + 0.3) for i in range(WINDOW)], True),
    "steady waves of six entries": ([math.cos(math.pi * i / 3) for i in range(WINDOW)], False),
    "a fall": ([math.exp(-i / 4) for i in range(WINDOW)], False),
    "an explosion": ([2.0**i for i in range(WINDOW)], False),
    "a constant": ([0.1] * WINDOW, False),
    "too few entries": ([(-1.0) ** i for i in range(WINDOW - 1)], False),
    "not a number": ([float("nan")] * WINDOW, False),
}


@pytest.mark.parametrize("name", SERIES)
def test_an_oscillation_is_no_trend_and_no_explosion(name: str) -> None:
    y, swings = SERIES[name]
    assert oscillates(y) is swings


def test_noise_is_rarely_taken_for_an_oscillation() -> None:
    windows = torch.randn(1000, WINDOW, generator=keyed_generator("noise", index=0)).tolist()
    assert sum(map(oscillates, windows)) <= 10


def test_a_gradient_is_measured_by_the_median_of_those_before_it() -> None:
    before = [1.0, 2.0, 3.0, 2.0, 1.0]
    assert spikes([*before, 2 * SPIKE + 1]) and not spikes([*before, 2 * SPIKE])
    assert not spikes([*before, 100.0, 2.0]), "the next one is compared with a median that the spike hardly moves"
    assert spikes([float("nan")]) and spikes([1.0, float("inf")]) and not spikes([1.0, 1e9])


def test_drift_is_measured_in_the_std_of_the_start_and_of_the_data() -> None:
    start, data_std = [1.0, 4.0], 4.0
    assert not drifts(3.0, 4.0, start, data_std) and drifts(3.1, 4.0, start, data_std)
    assert drifts(-1.1, 4.0, start, data_std) and drifts(float("nan"), 4.0, start, data_std)
    assert not drifts(1.0, 2.0, start, data_std) and drifts(1.0, 1.9, start, data_std)
    assert not drifts(1.0, 6.0, start, data_std) and drifts(1.0, 6.1, start, data_std)


def test_a_posterior_mean_may_gain_the_data_s_std_and_no_more() -> None:
    start, data_std = [0.0, 1.0], 4.0
    assert not any(drifts(0.0, std, start, data_std) for std in (0.5, 1.0, 4.0, 6.0))
    assert drifts(0.0, 0.4, start, data_std) and drifts(0.0, 6.1, start, data_std)


# when it is said


def test_a_warning_comes_once_a_crossing_and_says_what_to_try() -> None:
    console = Console(file=io.StringIO(), width=400)
    signs, flags = WarningSigns(console), []
    for cycle, norm in enumerate([1.0] * 6 + [99.0, 99.0, 1.0, 99.0]):
        found = signs.watch({"generator_grad_norm": norm}, warm=True, data_std=1.0)
        signs.warn(found, cycle, speak=True)
        flags.append(bool(found["gradient_spike"]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert flags == [False] * 6 + [True, True, False, True]
    assert [line.split(":")[0] for line in lines] == ["warning at cycle 6", "warning at cycle 9"]
    assert all("generator_grad_norm 99" in line and REMEDIES["gradient_spike"] in line for line in lines)


def test_signs_are_told_only_of_scalars_that_are_there() -> None:
    signs = WarningSigns(Console(file=io.StringIO()))
    assert signs.watch({"loss": 1.0, "grad_norm": 1.0}, warm=True, data_std=1.0).keys() == {
        "oscillation",
        "gradient_spike",
    }
    assert "drift" in signs.watch({"sample_mean": 0.0, "sample_std": 1.0}, warm=True, data_std=1.0)


# in training


def test_training_is_bit_equal_without_the_callback(tmp_path: Path, monkeypatch: Any) -> None:
    with_it = run(watched(), tmp_path / "watched")
    monkeypatch.setattr(fitting, "WarningSigns", lambda console: Callback())
    assert same_bits(with_it, run(watched(), tmp_path / "alone"))
    for a, b in zip(read_metrics(tmp_path / "watched" / FILE), read_metrics(tmp_path / "alone" / FILE), strict=True):
        assert {key: value for key, value in a.items() if not key.startswith("warning/")} == b


def test_samples_that_run_away_are_reported_and_flagged(tmp_path: Path) -> None:
    printed = said(watched(lr=1.0), tmp_path)
    assert printed.count(": drift, sample_mean") == 1 and "lower optimizer.lr" in printed
    flags = [float(row["warning/drift"]) for row in read_metrics(tmp_path / FILE)]
    assert flags[0] == 0 and flags[-1] == 1 and set(flags) == {0.0, 1.0}
    assert "warning/" not in printed, "flags are for the loggers"


def test_a_resumed_run_warns_as_the_undisturbed_one(tmp_path: Path, monkeypatch: Any) -> None:
    def state(run_dir: Path) -> Any:
        return torch.load(run_dir / checkpoints.LAST, weights_only=True)["callbacks"]["WarningSigns"]

    whole_and_resumed(watched, tmp_path, monkeypatch, cycle=5)
    assert state(tmp_path / "whole") == state(tmp_path / "parts")
    assert len(state(tmp_path / "whole")["seen"]["mismatch"]) == SCHEDULE.cycles
    assert read_metrics(tmp_path / "whole" / FILE) == read_metrics(tmp_path / "parts" / FILE)
