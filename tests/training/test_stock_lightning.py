"""A module trains under a Trainer of the user's own, with stock loggers, callbacks and the profiler."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from toy_trainings import CONFIG, distillation, pieces, run

from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.point_metrics import PointMetrics
from fgm.training.callbacks import MetricLogger
from fgm.training.checkpointing import LAST
from fgm.training.distillation import Distillation
from fgm.training.evaluation import EvaluationCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # of stock parts: few workers, no pre-optimization state
LOGGED = replace(CONFIG, max_steps=12, log_every_n_steps=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer, Distillation]:
    """A run that EarlyStopping ends, since its learning rate is next to nothing."""
    folder = tmp_path_factory.mktemp("stock")
    module = distillation(config=LOGGED, optimizer=lambda net: torch.optim.SGD(net.parameters(), 1e-12))
    evaluator = Evaluator(PointMetrics(Ring()), every=2, n_in_training=64)
    callbacks = [
        EvaluationCallback(evaluator, folder, "0", Console(file=io.StringIO())),
        EarlyStopping(monitor="eval/sliced_w2", patience=2, min_delta=0.01, check_on_train_epoch_end=False),
        ModelCheckpoint(folder, "best", monitor="eval/sliced_w2", save_on_train_epoch_end=False),
    ]
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, callbacks=callbacks, log_every_n_steps=2, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
        logger=TensorBoardLogger(folder, "", "events"), profiler=SimpleProfiler(folder, "profile"),
    )  # fmt: skip
    trainer.fit(module)
    return folder, trainer, module


def test_early_stopping_ends_a_run_whose_measure_does_not_improve(finished: tuple[Path, Trainer, Distillation]) -> None:
    _, trainer, module = finished
    assert int(module.step) == trainer.global_step == 6
    assert "eval/sliced_w2" in trainer.callback_metrics


def test_scalars_and_measures_reach_tensorboard(finished: tuple[Path, Trainer, Distillation]) -> None:
    events = EventAccumulator(str(finished[0] / "events"))
    events.Reload()
    assert {"mismatch", "online_loss", "generator_grad_norm", "eval/sliced_w2"} <= set(events.Tags()["scalars"])


def test_the_profiler_times_the_training_step(finished: tuple[Path, Trainer, Distillation]) -> None:
    (profile,) = finished[0].glob("fit-profile*")
    assert "training_step" in profile.read_text()


def test_a_checkpoint_loads_by_lightnings_own_method(finished: tuple[Path, Trainer, Distillation]) -> None:
    folder, _, module = finished
    options = pieces(config=LOGGED) | {"t_star": 0.9, "generator_init": "random", "online_init": "random"}
    loaded = Distillation.load_from_checkpoint(folder / "best.ckpt", weights_only=True, **options)
    z: Tensor = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(z), module(z), rtol=0, atol=1e-6)


def test_a_run_of_the_suite_writes_each_scalar_once(tmp_path: Path) -> None:
    module = run(distillation(config=replace(CONFIG, max_steps=4, log_every_n_steps=2)), tmp_path)
    assert (
        any(isinstance(callback, MetricLogger) for callback in module.trainer.callbacks) and (tmp_path / LAST).exists()
    )
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and "mismatch" in rows[0]
