"""Checkpoints that are complete or absent, exit on signals, and the exported weights.

    last.ckpt         the newest saved step
    previous.ckpt     the one before it, in case last.ckpt is damaged
    00001000.ckpt     a step of keep_every_n_steps; renamed to last.ckpt, a run resumes from it

Lightning's own checkpoint path serialises into memory and moves the file across file systems without fsync, its time
trigger is ignored under manual optimization, and its SIGTERM handler calls collectives inside the handler. So these parts
are ours: torch.save beside the target, fsync, os.replace; and a handler that only sets a flag.

A signal of utils.errors.SIGNALS, which schedulers and terminals send, is acknowledged at once on any rank and stops the run at
the end of its step, saved, with exit code 75 on all ranks (sysexits' EX_TEMPFAIL: the same command resumes; torchrun itself
exits with 1 and reports 75 of its ranks). Whatever signals follow change nothing; Ctrl-\\ ends a run at once, without saving.
"""

import os
import shutil
import signal
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from fgm.training.config import TrainingConfig
from fgm.training.distributed import gather_state, training_ranks
from fgm.training.module import TrainingModule
from fgm.utils.distributed import all_reduce_max
from fgm.utils.errors import RESUMABLE, UserError, announce, handle_signals, unwritable
from fgm.utils.files import replacing
from fgm.utils.pickles import load_tensors

LAST = Path("checkpoints") / "last.ckpt"
PREVIOUS = LAST.with_name("previous.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save atomically and keep the file that was there before as PREVIOUS.

    A disk that is full or read-only costs a warning and leaves the existing files as they are.

    Args:
        console: for the warning.
        trusted: whether a file at the target may replace PREVIOUS; it may after the first save.
    """

    def __init__(self, console: Console, trusted: bool = True) -> None:
        super().__init__()
        self.console, self.trusted = console, trusted

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists() and self.trusted:
                link_or_move(path, path.with_name(PREVIOUS.name))
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            cause = unwritable(error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if cause is None:
                raise
            self.console.print(f"warning: {path} is not written ({cause}): {what_remains(path)}")
        else:
            self.trusted = True


def link_or_move(path: Path, target: Path) -> None:
    """Atomically make target a copy of path: by a hard link, or by renaming on file systems without links."""
    link = target.with_name(f".{target.name}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, link)
    os.replace(link, target)


def saved_step(path: Path) -> int:
    return int(load_tensors(path, mmap=True)["state_dict"]["step"])


def damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, by the checksums inside its zip file; None if it is intact."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        saved_step(path)
    except Exception as error:  # a damaged file can end in nearly any exception
        return type(error).__name__
    return f"checksum of {broken}" if broken else None


def what_remains(path: Path) -> str:
    return f"the one of step {saved_step(path)} remains" if path.exists() and not damage(path) else "there is none"


def last_checkpoint(run_dir: Path, console: Console) -> tuple[Path | None, int]:
    """Return the checkpoint to resume from and its step, or (None, 0); the previous one if the last is damaged.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    candidates = {path: damage(path) for path in (run_dir / LAST, run_dir / PREVIOUS) if path.exists()}
    intact = next((path for path, wrong in candidates.items() if not wrong), None)
    for path, wrong in candidates.items():
        if wrong and intact is None:
            raise UserError(f"{path} cannot be read ({wrong}): delete it to start again")
        if wrong:
            console.print(f"warning: {path} is damaged ({wrong}): resuming from {intact}")
    return intact, saved_step(intact) if intact else 0


class SignalHandler:
    """Remember and acknowledge the first signal."""

    def __init__(self, console: Console) -> None:
        self.console, self.received = console, ""

    def install(self) -> None:
        """Handle SIGNALS until the trainer restores the previous handlers."""
        handle_signals(self.handle)

    def handle(self, number: int, frame: Any) -> None:
        name, line = signal.Signals(number).name, "saving after this step, which may take a while"
        if self.received:
            line = "already saving after this step; Ctrl-\\ ends it at once, unsaved" if number == signal.SIGINT else ""
        self.received = self.received or name
        if line and not self.console.quiet:
            announce(f"{name}: {line}")

    def exit(self, trainer: Trainer, step: int) -> NoReturn:
        release_ranks(trainer)
        cause = self.received or "another rank was asked to stop"
        self.console.print(f"{cause}: stopped after step {step}; the same command resumes")
        raise SystemExit(RESUMABLE)


def release_ranks(trainer: Trainer) -> None:
    """Stop Lightning's launcher from killing rank 0 within 5 s of another rank's non-zero exit code."""
    getattr(trainer.strategy.launcher, "procs", []).clear()


class Checkpointing(Callback):
    """Save last.ckpt every so many steps or minutes, on a signal, and at the end; on all ranks after the same step.

    Rank 0's clock counts, and a signal to any rank. While updates are being skipped only a signal saves, so that the last
    checkpoint is from before the trouble.
    """

    SAVE, STOP = 1, 2

    def __init__(self, run_dir: Path, config: TrainingConfig, signals: SignalHandler) -> None:
        self.path, self.config, self.signals, self.saved_at = run_dir / LAST, config, signals, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        self.signals.install()
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainingModule, *_: Any) -> None:
        step, request, every = int(pl_module.step), self.request(trainer), self.config.keep_every_n_steps
        kept = every and step % every == 0
        due = request or kept or step % self.config.save_every_n_steps == 0
        if request == self.STOP or (due and not pl_module.skipping):
            self.save(trainer)
        if kept and trainer.is_global_zero and not damage(self.path) and saved_step(self.path) == step:
            copy = self.path.with_name(f"{step:08d}.ckpt")
            copy.unlink(missing_ok=True)
            try:
                os.link(self.path, copy)
            except OSError:
                shutil.copyfile(self.path, copy)
        if request == self.STOP:
            self.signals.exit(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        self.save(trainer)
        if self.request(trainer) == self.STOP:
            self.signals.exit(trainer, int(pl_module.step))

    def request(self, trainer: Trainer) -> int:
        """Return STOP, SAVE or 0, the same on every rank."""
        due = trainer.is_global_zero and time.monotonic() - self.saved_at >= 60 * self.config.save_every_minutes
        return all_reduce_max(training_ranks(), self.STOP if self.signals.received else self.SAVE * due)

    def save(self, trainer: Trainer) -> None:
        """Save the loggers' rows first: a resumed run adds only those of its own steps."""
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)
        self.saved_at = time.monotonic()


def exported_state(module: TrainingModule) -> dict[str, Tensor]:
    """Return the averaged network's full state dict on the host of rank 0; all ranks must call it."""
    state = gather_state(dict(module.result().state_dict()))
    return {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}


def export_weights(module: TrainingModule, run_dir: Path) -> Path:
    """Write run_dir/<generator|teacher>.safetensors; all ranks must call it.

    Raises:
        UserError: a weight is not finite.
    """
    state = exported_state(module)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{run_dir}: {broken[0]} is not finite; training has diverged, and its weights are not exported"
        )
    path = run_dir / f"{module.exported}.safetensors"
    if state:
        with replacing(path) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
    return path
