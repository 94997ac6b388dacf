"""From a module to a trained module: the Trainer, its callbacks, and resuming from a checkpoint."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.plugins.precision import MixedPrecision
from pydantic import PositiveInt
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

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
from fgm.training.diagnostics import Diagnostics
from fgm.training.distributed import SINGLE, Strategy
from fgm.training.evaluation import EvaluationCallback
from fgm.training.loggers import build_loggers
from fgm.training.module import DivergenceError, TrainingModule
from fgm.utils.errors import RESUMABLE, UserError, unwritable
from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class Hardware:
    """Where to run. bf16 is a precision of the networks' arithmetic only; weights, times and losses are float32.

    compile: see CompileBlocks.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    compile: bool = False


@dataclass(frozen=True)
class Run:
    """What a training is given beside its module."""

    run_dir: Path
    name: str
    logger: Any
    config: dict[str, Any]
    hardware: Hardware
    evaluation: Evaluator
    console: Console
    strategy: Strategy = SINGLE
    allow_world_size_change: bool = False

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
    callbacks = [
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
    steps: Any = range(module.config.max_steps)  # a step draws all that it needs from its keyed generators
    train(module, run, DataLoader(steps, batch_size=None), callbacks, checkpoint, step)
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
    callbacks = [*callbacks, CompileBlocks()] if run.hardware.compile else callbacks
    checkpoint_io = AtomicCheckpointIO(run.console, trusted=checkpoint == run.run_dir / LAST)
    loggers = build_loggers(run.logger, run.run_dir, run.name, run.config, step, run.console)
    trainer = build_trainer(run, module.config.log_every_n_steps, loggers, callbacks, checkpoint_io)
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


def build_trainer(run: Run, log_every_n_steps: int, loggers: Any, callbacks: Any, checkpoint_io: Any) -> Trainer:
    hardware, mixed = run.hardware, run.hardware.precision == "bf16-mixed"
    on_cpu = {"cpu": True, "gpu": False, "auto": not torch.accelerator.is_available()}[hardware.accelerator]
    plugins = [checkpoint_io, *([bf16_mixed("cpu" if on_cpu else "cuda")] if mixed else [])]
    return Trainer(
        max_epochs=1, accelerator=hardware.accelerator, devices=hardware.devices, num_nodes=run.strategy.nodes,
        precision=None if mixed else hardware.precision, plugins=plugins,
        strategy=run.strategy.build(hardware.devices),
        logger=loggers, callbacks=callbacks, log_every_n_steps=log_every_n_steps,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=run.console.is_terminal,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=run.run_dir,
    )  # fmt: skip


class CpuMixedPrecision(MixedPrecision):
    """bf16-mixed on a CPU, with attention as plain matrix products within a training step.

    The backward of torch's fused attention has no bfloat16 kernel on the CPU: with the small MM-DiT's 76 tokens it takes half
    of a step's time (`make bench` measures it).
    """

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        with super().train_step_context(), sdpa_kernel(SDPBackend.MATH):
            yield


def bf16_mixed(device: str) -> MixedPrecision:
    return CpuMixedPrecision() if device == "cpu" else MixedPrecision("bf16-mixed", device)
