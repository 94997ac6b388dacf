"""Loggers that show images get pictures, captions and summaries; on W&B every curve has steps as its axis."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fgm.training.loggers import AXIS, PromptSample, StepWandbLogger, log_prompt_samples, log_results
from fgm.utils.records import Measurement


class Images:
    """A logger that remembers captions and tables."""

    def __init__(self) -> None:
        self.captions: list[tuple[int, list[str]]] = []
        self.experiment = SimpleNamespace(summary={}, finish=lambda: None)

    def log_image(self, key: str, images: list[Any], step: int, caption: Any = None) -> None:
        self.captions.append((step, caption))

    def log_table(self, *_: Any, **__: Any) -> None: ...


def test_summary_of_a_run_is_that_of_its_first_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.training.loggers.WandbLogger", Images)
    logger, samplers = Images(), [(1.0, 4, "ema"), (2.0, 4, "raw"), (0.5, 50, "teacher"), (0.1, 0, "real")]
    log_results([logger], [Measurement("fd", value, 9, "p", *sampler) for value, *sampler in samplers], tmp_path, 3)
    of_samplers = {"final/fd/ema/4": 1.0, "final/fd/raw/4": 2.0, "final/fd/teacher/50": 0.5}
    assert logger.experiment.summary == {"final/fd": 1.0, **of_samplers}


def test_caption_of_a_prompt_states_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Images, "log_table")
    logger, blank = Images(), np.zeros((2, 2, 3), np.uint8)
    samples = [PromptSample("a ring", True, "", blank), PromptSample("a cross", False, "found 0", blank)]
    log_prompt_samples([logger], samples, 7)
    assert logger.captions == [(7, ["a ring (right)", "a cross (found 0)"])]


class FakeRun:
    """A W&B run that remembers axes and values."""

    def __init__(self) -> None:
        self.axes: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []

    def define_metric(self, name: str, step_metric: str | None = None, **_: Any) -> None:
        self.axes[name] = step_metric

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged.append(metrics)


def test_wandb_axis_of_every_curve_is_finished_steps(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger, run = StepWandbLogger(save_dir=tmp_path, offline=True), FakeRun()
    logger._experiment = run  # type: ignore[assignment]
    logger.define_axis()
    assert run.axes == {AXIS: None} | dict.fromkeys(("*", "train/*", "eval/*", "warning/*"), AXIS)
    logger.log_metrics({"mismatch": 1.0, "eval/fd": 2.0, "warning/drift": 0.0}, step=9)
    logged = {"train/mismatch": 1.0, "eval/fd": 2.0, "warning/drift": 0.0, AXIS: 10, "trainer/global_step": 9}
    assert run.logged == [logged]
