"""Loggers of configs/logger: metrics.csv always; W&B, TensorBoard, MLflow, Trackio or any Lightning logger beside it.

Grids and prompt tables go to loggers that show images.

On W&B the axis of everything is `step`, the number of finished steps. Names without a folder get train/; eval/ and warning/
keep theirs. In metrics.csv the names stay as they are. Lightning's own CSV writer deletes the file when a run resumes, so the
writer here keeps the rows before the resumed step.
"""

import csv
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from numpy.typing import NDArray
from rich.console import Console

from fgm.utils.errors import UserError, first_line, install, missing_package
from fgm.utils.files import replacing
from fgm.utils.records import Measurement, read_metrics

PROJECT, AXIS = "fgm", "step"  # of W&B: the project, and the axis of every curve
FOLDERS = ("train", "eval", "warning")


def final(metric: str, *sampler: str | int) -> str:
    """Name a final measurement in a run's summary: the first sampler's, or that of (weights, nfe)."""
    return "/".join(map(str, ("final", metric, *sampler)))


def wandb_hint() -> str | None:
    """Return why a W&B run cannot start without asking for an account; None if it can.

    wandb.login looks for the account of WANDB_BASE_URL's server in the environment, ~/.netrc and its own settings.
    """
    if find_spec("wandb") is None:
        return f"for W&B, {install('wandb')}"
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "dryrun"):
        return None
    if mode == "disabled":
        return "WANDB_MODE=disabled"
    import wandb

    if wandb.login(prompt=False, verify=False):
        return None
    return "W&B is not configured: wandb login, or set WANDB_API_KEY or WANDB_MODE=offline"


class AppendingWriter(_ExperimentWriter):
    """Rewrite the file atomically with the rows before `step` that were already there, and the new ones.

    A killed run loses no row, and rows that a full disk does not take are written next time.
    """

    def __init__(self, log_dir: str, step: int) -> None:
        rows: list[dict[str, Any]] = [*read_metrics(Path(log_dir) / self.NAME_METRICS_FILE)]
        self.rows = [row for row in rows if int(row["step"]) < step]
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Do not warn: nothing is deleted."""

    def save(self) -> None:
        self.rows, self.metrics = [*self.rows, *self.metrics], []
        if not self.rows:
            return
        path = Path(self.metrics_file_path)
        with suppress(OSError), replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted(set().union(*self.rows)))
            writer.writeheader()
            writer.writerows(self.rows)


class AppendingCSVLogger(CSVLogger):
    """Log to run_dir/metrics.csv, keeping its rows before `step`."""

    def __init__(self, run_dir: Path, step: int) -> None:
        super().__init__(run_dir, name="", version="")
        self._experiment: Any = AppendingWriter(str(run_dir), step)


class StepWandbLogger(WandbLogger):
    """WandbLogger whose axis is finished steps; Lightning's `step` counts from 0."""

    def define_axis(self, metrics: Mapping[str, str] | None = None) -> None:
        """Set the axis in place of trainer/global_step. metrics: of a study, {metric: min or max}."""
        self.experiment.define_metric(AXIS, hidden=True)
        for pattern in ("*", *(f"{folder}/*" for folder in FOLDERS)):
            self.experiment.define_metric(pattern, step_metric=AXIS)
        for metric, best in (metrics or {}).items():
            self.experiment.define_metric(f"eval/{metric}", step_metric=AXIS, summary=best)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        named = {key if "/" in key else f"train/{key}": value for key, value in metrics.items()}
        super().log_metrics(named if step is None else named | {AXIS: step + 1}, step)

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: Any = None
    ) -> None:
        """Log a table; arrays in its cells become images."""
        import wandb

        cells = [[wandb.Image(cell) if hasattr(cell, "shape") else cell for cell in row] for row in data or []]
        super().log_table(key, columns, cells, dataframe, step)


def wandb_logger(
    run_dir: Path,
    name: str,
    config: dict[str, Any],
    console: Console,
    project: str | None = None,
    entity: str | None = None,
) -> StepWandbLogger:
    """Return a logger whose W&B run id is in the run directory, so that a resumed run continues its curves.

    A point of a study is grouped and tagged by it, and the best value of each of the study's metrics is its summary.

    Args:
        project, entity: WANDB_PROJECT or fgm, and WANDB_ENTITY or the account's own, unless given.
    """
    id_file, study = run_dir / "wandb_id.txt", config.get("study", {})
    logger = StepWandbLogger(
        project=project or os.environ.get("WANDB_PROJECT") or PROJECT, entity=entity or os.environ.get("WANDB_ENTITY"),
        name=run_dir.name if study else name, save_dir=run_dir, resume="allow", config=config,
        group=study.get("study"), tags=[study["study"], name] if study else None,
        id=id_file.read_text() if id_file.exists() else None,
    )  # fmt: skip
    id_file.write_text(logger.experiment.id)
    logger.define_axis(study.get("metrics", {}))
    console.print(f"logging to {run_dir}/metrics.csv and to W&B")
    return logger


def wandb_if_configured(
    run_dir: Path,
    name: str,
    config: dict[str, Any],
    console: Console,
    project: str | None = None,
    entity: str | None = None,
) -> StepWandbLogger | None:
    """Return the W&B logger if a run can start without asking anybody; say in one line which it is."""
    hint = wandb_hint()
    if hint is None:
        return wandb_logger(run_dir, name, config, console, project, entity)
    console.print(f"logging to {run_dir}/metrics.csv ({hint})")
    return None


class TrackioLogger(Logger):
    """Log scalars to Trackio, https://github.com/gradio-app/trackio, for which Lightning has no logger."""

    def __init__(self, name: str, config: dict[str, Any], project: str = PROJECT, **init: Any) -> None:
        super().__init__()
        import trackio  # type: ignore[import]

        self._name, self.project = name, project
        self.run = trackio.init(project=project, name=name, config=config, resume="allow", **init)

    name = property(lambda self: self._name)
    version = property(lambda self: self._name)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `init` has stored the config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log(dict(metrics), step=step)

    def finalize(self, status: str) -> None:
        self.run.finish()


def build_loggers(makers: Mapping[str, Callable[..., Logger | None]], **available: Any) -> list[Logger]:
    """Call each maker with those of run_dir, save_dir, name, config, step and console that it takes and has not been given.

    Raises:
        UserError: the package of a logger is not installed.
    """
    loggers = []
    for key, make in makers.items():
        given = getattr(make, "keywords", {})
        wanted = {name for name in inspect.signature(make).parameters if name in available and name not in given}
        try:
            loggers.append(make(**{name: available[name] for name in wanted}))
        except ModuleNotFoundError as error:
            package = missing_package(error)
            remedy = install(package) if package else "pip install it"
            raise UserError(f"logger.{key}: {first_line(error)}; {remedy}, or leave this logger out") from error
        except Exception as error:
            if key != "wandb":
                raise
            reason = " ".join(str(error).split())
            available["console"].print(f"W&B did not start ({reason}): logging without it")  # never a reason to fail
    return [logger for logger in loggers if logger is not None]


@dataclass(frozen=True)
class PromptSample:
    """One prompt and what a sampler made of it; image (h, w, 3) uint8."""

    prompt: str
    correct: bool
    reason: str
    image: NDArray[Any]


def log_grid(loggers: Sequence[Any], path: Path, step: int) -> None:
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image("eval/samples", [str(path)], step=step)


def log_prompt_samples(loggers: Sequence[Any], samples: Sequence[PromptSample], step: int) -> None:
    """Log a table to loggers that have tables, captioned images to others that show images."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            rows = [[step + 1, s.prompt, s.correct, s.reason, s.image] for s in samples]
            logger.log_table("eval/prompts", [AXIS, "prompt", "correct", "reason", "picture"], rows, step=step)
        elif hasattr(logger, "log_image"):
            captions = [f"{s.prompt} ({'right' if s.correct else s.reason})" for s in samples]
            logger.log_image("eval/prompts", [s.image for s in samples], step=step, caption=captions)


def log_results(loggers: Sequence[Any], results: Sequence[Measurement], path: Path, step: int) -> None:
    """Log a finished run's grid, and on W&B its measurements as a table and a summary; then close the W&B run.

    In the summary final/<metric>/<weights>/<nfe> is any sampler's value, and final/<metric> that of the first sampler, so
    that a sweep can name it. The run is closed because a distillation after its teacher's run would otherwise continue it.
    """
    log_grid(loggers, path, step)
    samplers = [m for m in results if m.weights != "real"]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            summary = {final(m.metric): m.value for m in reversed(samplers)}
            summary |= {final(m.metric, m.weights, m.nfe): m.value for m in samplers}
            rows = [[m.metric, m.value, m.n, m.nfe, m.weights, m.protocol] for m in results]
            logger.log_table("final/results", ["metric", "value", "n", "nfe", "weights", "protocol"], rows, step=step)
            logger.experiment.summary.update(summary)
            logger.experiment.finish()
