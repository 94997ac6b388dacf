"""What a logger that can show images is given: the grids, and a table of prompts where there are some; others, nothing.

On W&B the axis of everything is `cycle`, the number of finished cycles: of generator updates, or of a teacher's steps.
Names that have no folder get train/; eval/ and warning/ keep theirs. In metrics.csv the names stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray

from fgm.utils.account import AXIS, final
from fgm.utils.records import Measurement

FOLDERS = ("train", "eval", "warning")


class CycleWandbLogger(WandbLogger):
    """WandbLogger whose axis is finished cycles; `step` counts from 0, as everywhere in Lightning."""

    def define_axis(self, metrics: Mapping[str, str] | None = None) -> None:
        """Instead of Lightning's trainer/global_step. metrics: of a study, {metric: min or max}."""
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
        """Arrays in the cells become images."""
        import wandb

        shown = [[wandb.Image(cell) if hasattr(cell, "shape") else cell for cell in row] for row in data or []]
        super().log_table(key, columns, shown, dataframe, step)


@dataclass(frozen=True)
class Answer:
    """One prompt and what a sampler made of it; image (h, w, 3) uint8."""

    prompt: str
    correct: bool
    reason: str
    image: NDArray[Any]


def log_grid(loggers: Sequence[Any], path: Path, step: int) -> None:
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image("eval/samples", [str(path)], step=step)


def log_answers(loggers: Sequence[Any], answers: Sequence[Answer], step: int) -> None:
    """A table to those that have tables, captioned images to the others that show images."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            rows = [[step + 1, a.prompt, a.correct, a.reason, a.image] for a in answers]
            logger.log_table("eval/prompts", [AXIS, "prompt", "correct", "reason", "picture"], rows, step=step)
        elif hasattr(logger, "log_image"):
            captions = [f"{a.prompt} ({'right' if a.correct else a.reason})" for a in answers]
            logger.log_image("eval/prompts", [a.image for a in answers], step=step, caption=captions)


def log_results(loggers: Sequence[Any], results: Sequence[Measurement], path: Path, step: int) -> None:
    """The end of a run: its last grid, and its measurements as a table and as W&B's summary.

    There final/<metric>/<weights>/<nfe> is any sampler's, and final/<metric> that of the first one, which the run is
    for: a study asks for it, whatever the calls of its generators.

    The W&B run is closed, since the next run of this process, a distillation after its teacher's, would go on with it.
    """
    log_grid(loggers, path, step)
    drawn = [m for m in results if m.weights != "real"]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            named = {final(m.metric): m.value for m in reversed(drawn)}
            named |= {final(m.metric, m.weights, m.nfe): m.value for m in drawn}
            rows = [[m.metric, m.value, m.n, m.nfe, m.weights, m.protocol] for m in results]
            logger.log_table("final/results", ["metric", "value", "n", "nfe", "weights", "protocol"], rows, step=step)
            logger.experiment.summary.update(named)
            logger.experiment.finish()


def default_entity() -> str | None:
    """Whose projects W&B takes where nobody is named."""
    import wandb

    return wandb.Api().default_entity
