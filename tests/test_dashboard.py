"""Pictures and prompts reach the loggers that can show them, and the weights of the best measurement are kept."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from fgm.training.best import SaveBest
from fgm.training.setting import Schedule, Setting
from lightning.pytorch.loggers import Logger
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_trainings import on_cpu

from fgm.cli.config import read_recipe
from fgm.cli.train import final_part
from fgm.data.shapes.dataset import Shapes
from fgm.evaluation.evaluator import Evaluator, Mode
from fgm.evaluation.shapes.metric import ShapeEvalSuite
from fgm.flow.paths import RectifiedPath
from fgm.flow.times import Uniform
from fgm.networks import VelocityModel
from fgm.training import fit as fitting
from fgm.training.distillation import Distillation
from fgm.training.evaluation import Evaluate
from fgm.training.loggers import AXIS, Answer, CycleWandbLogger, RunCsvLogger, log_answers, log_results
from fgm.training.module import Method
from fgm.training.optim import adam
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement

SCHEDULE = Schedule(cycles=6, batch_size=2, warmup=1, decay=0.5, clip=1.0, ema_decay=0.5, log_every=2, save_every=6)


class Tint(VelocityModel):
    """A velocity of captioned images that shifts each colour by what the caption says."""

    shape, num_classes = (3, 32, 32), 0

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.words = nn.Conv2d(3, 3, 1), nn.Embedding(100, 3)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        shift = 0.0 if condition is None else self.words(condition).mean(1)[:, :, None, None]
        return self.mix(x_t) * t[:, None, None, None] + shift


class Canvas(Shapes):
    """Shapes whose std is not measured: nothing depends on it here."""

    std = 0.5


class Pictures(Logger):
    """Remembers what it is shown."""

    name = version = "pictures"

    def __init__(self, tables: bool) -> None:
        super().__init__()
        self.images: list[tuple[str, int, list[Any]]] = []
        self.tables: list[tuple[str, int, list[Any]]] = []
        if tables:
            self.log_table: Callable[..., None] = lambda key, columns, data, step: self.tables.append((key, step, data))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int, **_: Any) -> None:
        self.images.append((key, step, images))


class Scripted:
    """A suite whose measurements are written beforehand; it asks for nothing, and of samples it sees their number."""

    def __init__(self, values: list[float], metric: str = "fd") -> None:
        self.values, self.metric = iter(values), metric

    def identity(self) -> dict[str, Any]:
        return {}

    def features(self, x_0: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"seen": torch.ones(len(x_0))}

    def compute(self, features: dict[str, Tensor]) -> list[Measurement]:
        return [Measurement(self.metric, next(self.values), len(features["seen"]), "scripted")]

    def reference_values(self) -> list[Measurement]:
        return []


def fit(run_dir: Path, suite: Any, shown: list[Logger], monkeypatch: Any, **options: Any) -> tuple[Distillation, str]:
    torch.manual_seed(0)
    schedule = replace(SCHEDULE, cycles=options.pop("cycles", SCHEDULE.cycles))
    setting = Setting(0, schedule, Tint, RectifiedPath(), Uniform(), partial(adam, lr=0.1), Canvas(), Tint())
    console = Console(file=io.StringIO(), width=400)
    module = Distillation(setting, 0.9, online_start="random", teacher_steps=2)
    if isinstance(suite, Scripted):
        monkeypatch.setattr(Evaluate, "show", lambda *_: None)
    monkeypatch.setattr(fitting, "loggers", lambda *_: [RunCsvLogger(run_dir, 0), *shown])
    plan = Evaluator(suite, **{"every": 2, "n_in_training": 12} | options)
    fitting.fit(module, fitting.Run(run_dir, "test", {"config_digest": "0"}, plan, console, on_cpu()))
    return module, console.file.getvalue()  # type: ignore[attr-defined]


def small_suite() -> ShapeEvalSuite:
    return ShapeEvalSuite(prompts_per_tag=2, images_per_tag=2)


# pictures


def test_a_runs_summary_names_what_the_run_is_for_whatever_its_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study asks W&B for final/fd: of a generator of four calls as of one of one call."""
    summary: dict[str, float] = {}
    logger = Pictures(tables=True)
    logger.experiment = SimpleNamespace(summary=summary, finish=lambda: None)  # type: ignore[attr-defined]
    monkeypatch.setattr("fgm.training.loggers.WandbLogger", Pictures)
    samplers = [(1.0, 4, "ema"), (2.0, 4, "raw"), (0.5, 50, "teacher"), (0.1, 0, "real")]
    log_results([logger], [Measurement("fd", value, 9, "p", *sampler) for value, *sampler in samplers], tmp_path, 3)
    told = {"final/fd/ema/4": 1.0, "final/fd/raw/4": 2.0, "final/fd/teacher/50": 0.5}
    assert summary == {"final/fd": 1.0, **told}


def test_grids_and_prompts_are_shown_and_metrics_csv_is_as_without_them(tmp_path: Path, monkeypatch: Any) -> None:
    tabled, plain = Pictures(tables=True), Pictures(tables=False)
    fit(tmp_path / "shown", small_suite(), [tabled, plain], monkeypatch, cycles=2)
    fit(tmp_path / "alone", small_suite(), [], monkeypatch, cycles=2)
    files = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("shown", "alone")]
    assert files[0] == files[1] and b"eval/shapeeval_unseen" not in files[0] and b"eval/shapeeval," in files[0]
    assert tabled.images == [("eval/samples", 1, [str(tmp_path / "shown" / "samples" / "000002.png")])]
    ((key, step, table),) = tabled.tables
    assert (key, step, len(table)) == ("eval/prompts", 1, 12)
    assert [row[1] for row in table] == small_suite().prompts(torch.arange(12))
    assert all(row[0] == 2 and row[2] is False and row[3] and row[4].shape == (32, 32, 3) for row in table)
    assert [key for key, _, _ in plain.images] == ["eval/samples", "eval/prompts"]
    assert [key for key, _, _ in tabled.images] == ["eval/samples"]


def test_an_answer_is_captioned_with_what_is_wrong() -> None:
    seen: list[Any] = []
    logger = Pictures(tables=False)
    logger.log_image = lambda *_, **kept: seen.append(kept)  # type: ignore[method-assign]
    blank = np.zeros((2, 2, 3), np.uint8)
    log_answers([logger], [Answer("a ring", True, "", blank), Answer("a cross", False, "found 0", blank)], 7)
    assert seen == [{"step": 7, "caption": ["a ring (right)", "a cross (found 0)"]}]


class FakeRun:
    """What WandbLogger needs of a W&B run."""

    def __init__(self) -> None:
        self.axes: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []

    def define_metric(self, name: str, step_metric: str | None = None, **_: Any) -> None:
        self.axes[name] = step_metric

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged.append(metrics)


def test_on_wandb_every_curve_has_finished_cycles_as_its_axis(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger, run = CycleWandbLogger(save_dir=tmp_path, offline=True), FakeRun()
    logger._experiment = run  # type: ignore[assignment]
    logger.define_axis()
    assert run.axes == {AXIS: None} | dict.fromkeys(("*", "train/*", "eval/*", "warning/*"), AXIS)
    logger.log_metrics({"mismatch": 1.0, "eval/fd": 2.0, "warning/drift": 0.0}, step=9)
    logged = {"train/mismatch": 1.0, "eval/fd": 2.0, "warning/drift": 0.0, AXIS: 10, "trainer/global_step": 9}
    assert run.logged == [logged]


# the best weights


def best(run_dir: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = run_dir / "checkpoints"
    return json.loads((folder / "best.json").read_text()), load_file(folder / "best.safetensors")


@pytest.mark.parametrize("mode, cycle", [("min", 4), ("max", 2)])
def test_the_weights_of_the_best_measurement_are_kept(mode: str, cycle: int, tmp_path: Path, monkeypatch: Any) -> None:
    measure, states = Evaluate.measure, {}

    def remembering(self: Evaluate, module: Method, cycle: int) -> None:
        states[cycle] = {name: tensor.clone() for name, tensor in module.result().state_dict().items()}
        measure(self, module, cycle)

    monkeypatch.setattr(Evaluate, "measure", remembering)
    values = {2: 3.0, 4: 1.0, 6: 2.0}
    fit(tmp_path, Scripted([*values.values()]), [], monkeypatch, monitor="fd", mode=mode)
    record, weights = best(tmp_path)
    expected = {"cycle": cycle, "metric": "fd", "value": values[cycle], "n": 12, "protocol": "scripted", "mode": mode}
    assert record == expected
    assert all(torch.equal(states[cycle][name], tensor) for name, tensor in weights.items())
    assert not all(torch.equal(states[6][name], tensor) for name, tensor in weights.items())


def kept(run_dir: Path, *measured: tuple[int, float], n: int = 10, mode: Mode = "min") -> int:
    """The cycle that is kept after these measurements."""
    module = cast(Method, SimpleNamespace(result=lambda: nn.Linear(1, 1), global_rank=0))
    save = SaveBest("fd", mode, run_dir)
    for cycle, value in measured:
        save(module, cycle, [Measurement("fd", value, n, "test"), Measurement("fd", 0.0, n, "another sampler")])
    return best(run_dir)[0]["cycle"]


def test_a_resumed_run_keeps_the_best_so_far_and_another_protocol_starts_anew(tmp_path: Path) -> None:
    assert kept(tmp_path, (1, 5.0), (2, float("nan")), (3, 5.0)) == 1
    assert kept(tmp_path, (4, 6.0)) == 1 and kept(tmp_path, (5, 4.0)) == 5
    assert kept(tmp_path, (6, 9.0), n=20) == 6 and kept(tmp_path, (7, 1.0), n=20, mode="max") == 7
    (tmp_path / "checkpoints" / "best.safetensors").unlink()
    assert kept(tmp_path, (8, 0.5), n=20, mode="max") == 8, "a record without weights counts for nothing"


def test_a_metric_that_is_not_measured_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match=r"evaluation\.monitor = kid is not measured here; there are fd"):
        fit(tmp_path, Scripted([1.0]), [], monkeypatch, monitor="kid")
    with pytest.raises(UserError, match=r"give evaluation\.every"):
        Evaluator(Scripted([]), every=0, monitor="fd")


def test_the_best_is_a_setting_of_every_recipe_and_no_part_of_what_is_measured_at_its_end() -> None:
    config = read_recipe("digits_fgm", ["evaluation.monitor=fd", "evaluation.mode=min"])
    assert config["evaluation"]["monitor"] == "fd" and final_part(config) == final_part(read_recipe("digits_fgm", []))
    with pytest.raises(UserError, match="must be one of min, max"):
        read_recipe("digits_fgm", ["evaluation.monitor=fd", "evaluation.mode=least"])


def test_nothing_is_kept_unless_asked_for_and_thresholds_are_told(tmp_path: Path, monkeypatch: Any) -> None:
    _, printed = fit(tmp_path, Scripted([0.5, 0.0, 0.2], "class_tv"), [], monkeypatch)
    assert not (tmp_path / "checkpoints" / "best.json").exists()
    told = [line.split(":")[0] for line in printed.splitlines() if "mode collapse" in line]
    assert told == ["warning at cycle 2", "warning at cycle 6"]
