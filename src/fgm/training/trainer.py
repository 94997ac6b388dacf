"""From a module to a trained module: the Trainer, its callbacks, and resuming from a checkpoint."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from fgm.evaluation.evaluator import Evaluator
from fgm.training.callbacks import (
    CompileBlocks,
    ConsoleLogger,
    MetricLogger,
    ReplicaConsistencyCheck,
    UnusedParameterCheck,
    WorldSizeCheck,
)
from fgm.training.checkpointing import (
    LAST,
    AtomicCheckpointIO,
    Checkpointing,
    SignalHandler,
    last_checkpoint,
    release_ranks,
    what_remains,
)
from fgm.training.config import TrainingConfig
from fgm.training.diagnostics import Diagnostics
from fgm.training.distributed import SINGLE, Strategy
from fgm.training.evaluation import EvaluationCallback
from fgm.training.loggers import AppendingCSVLogger, build_loggers
from fgm.training.module import DivergenceError, TrainingModule
from fgm.training.precision import fastest_precision, kind_of_device, precision_plugin
from fgm.utils.errors import RESUMABLE, UserError, unwritable


@dataclass(frozen=True)
class Run:
    """What a training is given beside its module.

    Attributes:
        trainer: Lightning's Trainer with arguments of configs/trainer; the run adds the others, see build_trainer.
        loggers: makers by name, see build_loggers.
        callbacks: the user's own, called after the suite's.
        config: the resolved config, for loggers, with its config_digest.
    """

    run_dir: Path
    name: str
    config: dict[str, Any]
    evaluation: Evaluator
    console: Console
    trainer: "partial[Trainer]" = field(default_factory=lambda: partial(Trainer))
    strategy: Strategy = SINGLE
    loggers: Mapping[str, Callable[..., Logger | None]] = field(default_factory=lambda: {"csv": AppendingCSVLogger})
    callbacks: Sequence[Callback] = ()
    allow_world_size_change: bool = False

    @property
    def precision(self) -> str:
        """What Lightning calls it; what auto means on this device."""
        given = self.trainer.keywords
        precision = given.get("precision", "32-true")
        return fastest_precision(kind_of_device(given.get("accelerator", "auto"))) if precision == "auto" else precision

    @property
    def evaluation_callback(self) -> EvaluationCallback:
        return EvaluationCallback(self.evaluation, self.run_dir, self.config["config_digest"], self.console)


def fit(module: TrainingModule, run: Run) -> dict[str, float]:
    """Train to the last step, resuming from the last checkpoint if there is one.

    Returns:
        evaluate_s and train_s, seconds over all parts of a run that was stopped and resumed.
    """
    checkpoint, step = last_checkpoint(run.run_dir, run.console)
    if checkpoint:
        run.console.print(f"resuming from step {step} of {module.config.max_steps}")
    evaluate, timer = run.evaluation_callback, Timer(verbose=False)
    callbacks: list[Callback] = [
        timer,
        WorldSizeCheck(run.console, run.allow_world_size_change),
        ReplicaConsistencyCheck(),
        UnusedParameterCheck(run.console),
        evaluate,
        Diagnostics(run.console),
        MetricLogger(),
        Checkpointing(run.run_dir, module.config, SignalHandler(run.console)),
        RichProgressBar(leave=True) if run.console.is_terminal else ConsoleLogger(run.console),
    ]
    train(module, run, module.train_dataloader(), callbacks, checkpoint, step)
    return {"evaluate_s": evaluate.seconds, "train_s": timer.time_elapsed() - evaluate.seconds}


def train(
    module: TrainingModule,
    run: Run,
    batches: Any,
    callbacks: list[Callback],
    checkpoint: Path | None = None,
    step: int = 0,
) -> None:
    """Take one step per batch, whatever the batch holds, from a checkpoint of that step if one is given."""
    compiling = [CompileBlocks()] if module.config.compile else []
    checkpoint_io = AtomicCheckpointIO(run.console, trusted=checkpoint == run.run_dir / LAST)
    loggers = build_loggers(
        run.loggers, run_dir=run.run_dir, save_dir=run.run_dir, name=run.name, config=run.config, step=step,
        console=run.console,
    )  # fmt: skip
    trainer = build_trainer(run, module.config, loggers, [*callbacks, *compiling, *run.callbacks], checkpoint_io)
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
            release_ranks(trainer)
            raise as_user_error(error, run.run_dir / LAST) or error from error


def as_user_error(error: Exception, last: Path) -> UserError | None:
    """Return one line for an error that the user can mend, with the checkpoint that remains; None for any other."""
    cause = unwritable(error)
    if isinstance(error, DivergenceError):
        return DivergenceError(f"{error}; {last}: {what_remains(last)}")
    return UserError(f"{cause}; {last}: {what_remains(last)}") if cause else None


def build_trainer(run: Run, config: TrainingConfig, loggers: Any, callbacks: Any, checkpoint_io: Any) -> Trainer:
    """Return run.trainer's Trainer; what a run must set itself is set here, everything else is the user's."""
    given = run.trainer.keywords
    devices, accelerator = given.get("devices", 1), given.get("accelerator", "auto")
    plugins = [checkpoint_io, *(given.get("plugins") or [])]
    if count_devices(devices) * run.strategy.nodes == 1:
        plugins.append(LightningEnvironment())  # whatever allocation the process runs in
    precision = precision_plugin(run.precision, kind_of_device(accelerator))
    plugins += [precision] if precision else []
    defaults = {"enable_progress_bar": run.console.is_terminal, "enable_model_summary": False}
    own = {
        "max_epochs": 1, "devices": devices, "accelerator": accelerator, "num_nodes": run.strategy.nodes,
        "strategy": run.strategy.build(count_devices(devices)), "plugins": plugins,
        "precision": None if precision else run.precision,
        "logger": loggers, "callbacks": callbacks, "log_every_n_steps": config.log_every_n_steps,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0, "limit_val_batches": 0, "use_distributed_sampler": False,
        "default_root_dir": run.run_dir,
    }  # fmt: skip
    try:
        return run.trainer(**defaults | given | own)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def count_devices(devices: int | str | list[int]) -> int:
    """Return how many devices Lightning's `devices` means: a number, indices as a list or as "0,2", or "auto" or -1 for all.

    Raises:
        UserError: it means none of these.
    """
    if devices in ("auto", -1, "-1"):
        return max(1, torch.accelerator.device_count())
    if isinstance(devices, str):
        indices = [index for index in devices.split(",") if index.strip()]
        if not all(index.strip().isdecimal() for index in indices):
            raise UserError(f"trainer.devices = {devices}: give a number of devices, a list of indices, or auto")
        return len(indices) if "," in devices else int(devices)
    return len(devices) if isinstance(devices, list) else devices
