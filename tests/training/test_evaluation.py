"""Evaluation during training: what is logged, shown and kept, and that stock callbacks can monitor it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toy_trainings import CONFIG, distillation, place

from fgm.data.shapes.dataset import Shapes
from fgm.evaluation.evaluator import Evaluator, Mode
from fgm.evaluation.shapes.metric import ShapeEvalSuite
from fgm.networks import VelocityModel
from fgm.training.evaluation import EvaluationCallback
from fgm.training.trainer import fit
from fgm.utils.errors import UserError
from fgm.utils.records import Measurement


class Scripted:
    """A suite that returns values from a list, and of samples counts their number."""

    def __init__(self, values: list[float], metric: str = "fd") -> None:
        self.values, self.metric = iter(values), metric

    def identity(self) -> dict[str, Any]:
        return {}

    def features(self, x_0: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        return {"ones": torch.ones(len(x_0))}

    def compute(self, features: dict[str, Tensor]) -> list[Measurement]:
        return [Measurement(self.metric, next(self.values), len(features["ones"]), "scripted")]

    def reference_values(self) -> list[Measurement]:
        return []


class Record(Callback):
    """Remember the averaged weights and eval/fd after every step."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}
        self.fd: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        step = int(pl_module.step)
        self.states[step] = {name: tensor.clone() for name, tensor in pl_module.result().state_dict().items()}
        if "eval/fd" in trainer.callback_metrics:
            self.fd[step] = float(trainer.callback_metrics["eval/fd"])


def evaluation(run_dir: Path, values: list[float], metric: str = "fd", **options: Any) -> EvaluationCallback:
    evaluator = Evaluator(Scripted(values, metric), **{"every": 2, "n_in_training": 12} | options)
    return EvaluationCallback(evaluator, run_dir, "0", Console(file=io.StringIO(), width=400))


def train(run_dir: Path, *callbacks: Callback, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Train eight steps by a Trainer of one's own, without pictures."""
    monkeypatch.setattr(EvaluationCallback, "show", lambda *_: None)
    record = Record()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[*callbacks, record], default_root_dir=run_dir,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(distillation(), DataLoader(range(CONFIG.max_steps), batch_size=None))  # type: ignore[arg-type]
    return record


def test_stock_callbacks_monitor_the_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = ModelCheckpoint(tmp_path, "best", monitor="eval/fd", save_on_train_epoch_end=False)
    stop = EarlyStopping("eval/fd", patience=1, check_on_train_epoch_end=False)
    record = train(tmp_path, evaluation(tmp_path, [3.0, 1.0, 2.0, 0.5]), best, stop, monkeypatch=monkeypatch)
    assert record.fd == {2: 3.0, 3: 3.0, 4: 1.0, 5: 1.0, 6: 2.0}, "stopped after the third evaluation"
    assert best.best_model_score == 1.0
    saved = torch.load(best.best_model_path, weights_only=False)["state_dict"]
    assert int(saved["step"]) == 4


def test_values_reach_metrics_csv_at_their_own_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EvaluationCallback, "show", lambda *_: None)
    run = place(tmp_path, every=3, n_in_training=64)
    fit(distillation(), run)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) + 1 for row in rows if row["eval/sliced_w2"]] == [3, 6]
    assert [int(row["step"]) + 1 for row in rows if row["mismatch"]] == [4, 8]


@pytest.mark.parametrize("mode, step", [("min", 4), ("max", 2)])
def test_best_weights_are_kept(mode: Mode, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [3.0, 1.0, 2.0, float("nan")]
    callback = evaluation(tmp_path, values, monitor="fd", mode=mode)
    record = train(tmp_path, callback, monkeypatch=monkeypatch)
    row, weights = best_of(tmp_path)
    value = values[step // 2 - 1]
    assert row == {"metric": "fd", "mode": mode, "n": 12, "protocol": "scripted", "value": value, "step": step}
    assert all(torch.equal(record.states[step][name], tensor) for name, tensor in weights.items())
    assert not all(torch.equal(record.states[6][name], tensor) for name, tensor in weights.items())


def best_of(run_dir: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = run_dir / "checkpoints"
    return json.loads((folder / "best.json").read_text()), load_file(folder / "best.safetensors")


class Finished:
    """A module with a result and no training."""

    global_rank = 0

    def result(self) -> nn.Module:
        return nn.Linear(1, 1)


def best_step(run_dir: Path, *measured: tuple[int, float], n: int = 10, mode: Mode = "min") -> int:
    """Return the step that is kept after these measurements."""
    callback = evaluation(run_dir, [], monitor="fd", mode=mode)
    for step, value in measured:
        rows = [Measurement("fd", value, n, "test"), Measurement("fd", 0.0, n, "of another suite")]
        callback.keep_best(Finished(), rows, step)  # type: ignore[arg-type]
    return best_of(run_dir)[0]["step"]


def test_best_survives_a_resume_and_is_compared_at_equal_protocols_only(tmp_path: Path) -> None:
    assert best_step(tmp_path, (1, 5.0), (2, float("nan")), (3, 5.0)) == 1
    assert best_step(tmp_path, (4, 6.0)) == 1 and best_step(tmp_path, (5, 4.0)) == 5
    assert best_step(tmp_path, (6, 9.0), n=20) == 6 and best_step(tmp_path, (7, 1.0), n=20, mode="max") == 7
    (tmp_path / "checkpoints" / "best.safetensors").unlink()
    assert best_step(tmp_path, (8, 0.5), n=20, mode="max") == 8, "a record without weights does not count"


def test_unmeasured_monitor_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.monitor = kid is not measured here; there are fd"):
        evaluation(tmp_path, [], monitor="kid").keep_best(Finished(), [Measurement("fd", 1.0, 1, "p")], 1)  # type: ignore[arg-type]


def test_unhealthy_values_are_warned_of_and_nothing_is_kept_without_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = evaluation(tmp_path, [0.5, 0.0, 0.2, 0.0], "class_tv")
    train(tmp_path, callback, monkeypatch=monkeypatch)
    lines = callback.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    warned = [line.split(":")[0] for line in lines if "mode collapse" in line]
    assert warned == ["warning at step 2", "warning at step 6"] and not list(tmp_path.rglob("best.*"))


def test_final_measurements_reuse_those_of_the_teacher(tmp_path: Path) -> None:
    module, callback = distillation(teacher_steps=2), evaluation(tmp_path, [1.0, 2.0, 3.0])
    known = [Measurement("fd", 9.0, 12, "known", nfe=2, weights="teacher")]
    measured = callback.measure_all(module, known)
    assert [(m.value, m.nfe, m.weights) for m in measured] == [
        (1.0, 1, "ema"), (2.0, 1, "raw"), (3.0, 1, "teacher"), (9.0, 2, "teacher"),
    ]  # fmt: skip


class Tint(VelocityModel):
    """A velocity of captioned shapes with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.tint = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return x_t + self.tint


class Pictures(Logger):
    """Remember images, and tables if the logger has any."""

    name = version = "pictures"

    def __init__(self, tables: bool) -> None:
        super().__init__()
        self.images: list[tuple[str, int]] = []
        self.tables: list[list[Any]] = []
        if tables:
            self.log_table = lambda key, columns, data, step: self.tables.append(data)

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int, **_: Any) -> None:
        self.images.append((key, step))


def test_pictures_and_graded_prompts_reach_the_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = ShapeEvalSuite(prompts_per_tag=2, images_per_tag=2)
    tabled, plain = Pictures(tables=True), Pictures(tables=False)
    monkeypatch.setattr("fgm.training.trainer.build_loggers", lambda *_, **__: [tabled, plain])
    module = distillation(data=Shapes(), network=Tint, teacher=Tint(), teacher_steps=2)
    run = place(tmp_path)
    object.__setattr__(run, "evaluation", Evaluator(suite, every=8, n_in_training=12, n=12))
    fit(module, run)
    assert (tmp_path / "samples" / "000008.png").read_bytes().startswith(b"\x89PNG")
    assert tabled.images == [("eval/samples", 7)] and plain.images == [("eval/samples", 7), ("eval/prompts", 7)]
    (rows,) = tabled.tables
    assert [row[1] for row in rows] == suite.prompts(torch.arange(12))
    assert all(row[0] == 8 and row[2] is False and row[3] and row[4].shape == (32, 32, 3) for row in rows)
