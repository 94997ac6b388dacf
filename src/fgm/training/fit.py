"""From a module to a fitted module: the Trainer, its callbacks, and the way back from a checkpoint."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from pydantic import PositiveInt
from rich.console import Console
from torch.utils.data import DataLoader

from fgm.evaluation.evaluator import Evaluator
from fgm.training.checkpoints import LAST, AtomicCheckpointIO, SaveLast, last_checkpoint, what_stays
from fgm.training.compiled import CompileBlocks
from fgm.training.descend import DivergenceError
from fgm.training.evaluation import Evaluate, Measuring
from fgm.training.logs import Record, loggers, progress
from fgm.training.method import Method
from fgm.training.moved import Moved
from fgm.training.precision import bf16_mixed
from fgm.training.setting import Schedule
from fgm.training.stopping import StopRequest, release
from fgm.training.strategies import SINGLE, SameOnAllRanks, Strategy
from fgm.training.warning_signs import WarningSigns
from fgm.training.world import World, WorldChange
from fgm.utils.errors import RESUMABLE, UserError, told, unwritable
from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class Hardware:
    """Where to run. bf16 is a precision of the networks' arithmetic alone; weights, times and losses are float32.

    compile: see compiled.py.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    compile: bool = False


@dataclass(frozen=True)
class Run:
    """What a training is given besides its module."""

    run_dir: Path
    name: str
    logger: Any
    config: dict[str, Any]
    hardware: Hardware
    evaluation: Evaluator
    console: Console
    strategy: Strategy = SINGLE
    world_change: WorldChange = "refuse"

    @property
    def measuring(self) -> Measuring:
        return Measuring(self.evaluation, self.run_dir, self.config["config_digest"], self.console)


def fit(module: Method, run: Run) -> dict[str, float]:
    """Train to the last cycle, from the last checkpoint where there is one; seconds spent, by kind.

    Of all parts of a run that was stopped and went on.
    """
    checkpoint, cycle = last_checkpoint(run.run_dir, run.console)
    if checkpoint:
        run.console.print(f"going on from cycle {cycle} of {module.schedule.cycles}")
    evaluate, timer = Evaluate(run.measuring), Timer(verbose=False)
    saves = SaveLast(run.run_dir, module.schedule, StopRequest(run.console))
    callbacks = [
        timer, World(run.console, run.world_change), SameOnAllRanks(), Moved(run.console), evaluate,
        WarningSigns(run.console), Record(), saves, progress(run.console),
    ]  # fmt: skip
    cycles: Any = range(module.schedule.cycles)  # a step draws all that it needs from its streams
    train(module, run, DataLoader(cycles, batch_size=None), callbacks, checkpoint, cycle)
    return {"evaluate_s": evaluate.seconds, "train_s": timer.time_elapsed() - evaluate.seconds}


def train(
    module: Method, run: Run, batches: Any, callbacks: list[Callback], checkpoint: Path | None = None, cycle: int = 0
) -> None:
    """One cycle a batch, whatever it holds; from a checkpoint of that cycle where one is given."""
    callbacks = [*callbacks, CompileBlocks()] if run.hardware.compile else callbacks
    chosen = loggers(run.logger, run.run_dir, run.name, run.config, cycle, run.console)
    checkpoints = AtomicCheckpointIO(run.console, trusted=checkpoint == run.run_dir / LAST)
    trainer = build_trainer(run, module.schedule, chosen, callbacks, checkpoints)
    with warnings.catch_warnings():
        known = ".*does not have many workers|.*your dataloader is not resumable|.*LeafSpec|Found .* eval mode"
        warnings.filterwarnings("ignore", message=known)
        try:
            trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:
            if stop.code == RESUMABLE:
                raise
            raise KeyboardInterrupt from stop  # Lightning's own answer to a second Ctrl-C
        except Exception as error:
            release(trainer)
            raise refusal(error, run.run_dir / LAST) or error from error


def refusal(error: Exception, last: Path) -> UserError | None:
    """What an error that is the user's to mend leaves behind; None of any other."""
    found = unwritable(error)
    if isinstance(error, DivergenceError):
        return DivergenceError(f"{error}; {last}: {what_stays(last)}")
    return UserError(f"{told(found)}; {last}: {what_stays(last)}") if found else None


def build_trainer(
    run: Run, schedule: Schedule, loggers: list[Logger], callbacks: list[Any], checkpoints: AtomicCheckpointIO
) -> Trainer:
    hardware, mixed = run.hardware, run.hardware.precision == "bf16-mixed"
    on_cpu = {"cpu": True, "gpu": False, "auto": not torch.accelerator.is_available()}[hardware.accelerator]
    precision = [bf16_mixed("cpu" if on_cpu else "cuda")] if mixed else []
    return Trainer(
        max_epochs=1, accelerator=hardware.accelerator, devices=hardware.devices, num_nodes=run.strategy.nodes,
        precision=None if mixed else hardware.precision, plugins=[checkpoints, *precision],
        strategy=run.strategy.engine(hardware.devices),
        logger=loggers, callbacks=callbacks, log_every_n_steps=schedule.log_every,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=run.console.is_terminal,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=run.run_dir,
    )  # fmt: skip
