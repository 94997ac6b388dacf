"""Where scalars go: metrics.csv always; W&B if it is asked for and can work; and a line on the console."""

import csv
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console

from fgm.training.dashboard import CycleWandbLogger
from fgm.training.method import Method
from fgm.utils.account import PROJECT, wandb_works
from fgm.utils.files import replacing
from fgm.utils.records import read_metrics

LoggerChoice = Literal["auto", "csv", "wandb"]
UNSHOWN = ("images_seen", "skipped")


class ContinuedWriter(_ExperimentWriter):
    """Keeps the rows up to `step` of the file that is there, where Lightning's own deletes it.

    The whole file is written anew each time, and atomically: a run that is killed meanwhile loses no row, and what a
    full disk does not take is written next time.
    """

    def __init__(self, log_dir: str, step: int) -> None:
        rows: list[dict[str, Any]] = [*read_metrics(Path(log_dir) / self.NAME_METRICS_FILE)]
        self.kept = [row for row in rows if int(row["step"]) < step]
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Of no concern: nothing is deleted."""

    def save(self) -> None:
        self.kept, self.metrics = [*self.kept, *self.metrics], []
        if not self.kept:
            return
        path = Path(self.metrics_file_path)
        with suppress(OSError), replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted(set().union(*self.kept)))
            writer.writeheader()
            writer.writerows(self.kept)


class RunCsvLogger(CSVLogger):
    """run_dir/metrics.csv, continued when the run is."""

    def __init__(self, run_dir: Path, step: int) -> None:
        super().__init__(run_dir, name="", version="")
        self._experiment: Any = ContinuedWriter(str(run_dir), step)


def wandb_logger(run_dir: Path, name: str, config: dict[str, Any]) -> CycleWandbLogger:
    """Its axis is finished cycles; the run's id is kept in the run directory, so that a resumed run goes on.

    A point of a study is grouped and tagged by it, and the best value of each of the study's metrics is its summary.
    """
    id_file, study = run_dir / "wandb_id.txt", config.get("study", {})
    logger = CycleWandbLogger(
        project=PROJECT, name=run_dir.name if study else name, save_dir=run_dir, resume="allow", config=config,
        group=study.get("study"), tags=[study["study"], name] if study else None,
        id=id_file.read_text() if id_file.exists() else None,
    )  # fmt: skip
    id_file.write_text(logger.experiment.id)
    logger.define_axis(study.get("metrics", {}))
    return logger


def loggers(
    choice: LoggerChoice, run_dir: Path, name: str, config: dict[str, Any], step: int, console: Console
) -> list[Logger]:
    """CSV, and W&B where chosen or possible. A W&B that fails to start costs one line, not the run."""
    chosen: list[Logger] = [RunCsvLogger(run_dir, step)]
    if choice == "wandb" or (choice == "auto" and wandb_works()):
        try:
            chosen.append(wandb_logger(run_dir, name, config))
            console.print(f"logging to {run_dir}/metrics.csv and to W&B")
            return chosen
        except Exception as error:  # a logger is never a reason for a run to fail
            console.print(f"W&B did not start ({error}): logging to metrics.csv alone")
    else:
        console.print(
            f"logging to {run_dir}/metrics.csv (W&B is not configured: set WANDB_API_KEY or WANDB_MODE=offline)"
        )
    return chosen


class Record(Callback):
    """Hands the scalars of a cycle to the loggers BEFORE a checkpoint of that cycle is written, where Lightning's own
    order is the other way round: a run that was killed between the two would go on without that row.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        if pl_module.logs_now:
            scalars = {name: float(value) for name, value in trainer.callback_metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=int(pl_module.cycle) - 1)
                logger.save()


class Lines(Callback):
    """One plain line per logged interval, for pipes and files."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        self.began, self.first = time.perf_counter(), pl_module.images_seen

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        if pl_module.logs_now:
            speed = (pl_module.images_seen - self.first) / (time.perf_counter() - self.began)
            scalars = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in UNSHOWN and "/" not in k}
            shown = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            self.console.print(
                f"cycle {int(pl_module.cycle)}/{trainer.num_training_batches}  {shown}  {speed:.0f} images/s"
            )


def progress(console: Console) -> Callback:
    """A bar on a terminal, lines elsewhere."""
    return RichProgressBar(leave=True) if console.is_terminal else Lines(console)
