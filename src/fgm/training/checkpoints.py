"""Checkpoints that are whole or absent: written beside their name, flushed to disk, then renamed onto it.

last.ckpt         of the newest saved cycle
previous.ckpt     the one before it, for when last.ckpt is damaged
00001000.ckpt     of a cycle in keep_every; as last.ckpt, the run goes on from there
best.safetensors  see SaveBest
"""

import os
import shutil
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console

from fgm.training.method import Method
from fgm.training.ranks import training_ranks
from fgm.training.setting import Schedule
from fgm.training.stopping import StopRequest
from fgm.utils.distributed import all_reduce_max
from fgm.utils.errors import UNWRITABLE, UserError, unwritable
from fgm.utils.pickles import load_tensors

LAST = Path("checkpoints") / "last.ckpt"
PREVIOUS = LAST.with_name("previous.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """torch.save in the target's own folder, fsync, os.replace; what stood there before stays beside it as PREVIOUS.

    Loads with weights_only=True, as Lightning does. A disk that is full or may not be written costs a warning, and
    leaves the files that are there whole.

    Args:
        console: for the warning.
        trusted: whether a file that stands at the target may take PREVIOUS's place; so it is from the first save on.
    """

    def __init__(self, console: Console, trusted: bool = True) -> None:
        super().__init__()
        self.console, self.trusted = console, trusted

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written(checkpoint, temporary)
            if path.exists() and self.trusted:
                keep(path, path.with_name(PREVIOUS.name))
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            found = unwritable(error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if found is None:
                raise
            why, remedy = found.strerror, UNWRITABLE[found.errno or 0]
            self.console.print(f"warning: {path} is not written ({why}): {what_stays(path)}; {remedy}")
        else:
            self.trusted = True


def written(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def keep(path: Path, previous: Path) -> None:
    """As previous too, without a moment in which either is missing; by renaming where a file has but one name."""
    link = previous.with_name(f".{previous.name}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, link)
    os.replace(link, previous)


def also(path: Path, other: Path) -> None:
    """By the other name too: of the same bytes, until a newer file takes the first one."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def what_cycle(path: Path) -> int | None:
    """Of the checkpoint that stands there, an earlier one where a disk did not take the last; None if none is whole."""
    try:
        return read_cycle(path)
    except Exception:  # a damaged one can end in nearly any of them
        return None


def what_stays(path: Path) -> str:
    return f"the one of cycle {read_cycle(path)} stays" if path.exists() and not damage(path) else "none is there"


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint by the checksums of its parts, as torch.save writes a zip file; None if whole."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
        read_cycle(path)
    except Exception as error:
        return type(error).__name__
    return f"checksum of {broken}" if broken else None


def read_cycle(path: Path) -> int:
    return int(load_tensors(path, mmap=True)["state_dict"]["cycle"])


def last_checkpoint(run_dir: Path, console: Console) -> tuple[Path | None, int]:
    """The checkpoint to go on from, if there is one, and its cycle; the one before it where the last is damaged.

    Raises:
        UserError: there are some, and none is whole.
    """
    found = {path: damage(path) for path in (run_dir / LAST, run_dir / PREVIOUS) if path.exists()}
    whole = next((path for path, wrong in found.items() if not wrong), None)
    for path, wrong in found.items():
        if wrong and whole is None:
            raise UserError(f"{path} cannot be read ({wrong}): delete it to start again")
        if wrong:
            console.print(f"warning: {path} is damaged ({wrong}): going on from {whole}")
    return whole, read_cycle(whole) if whole else 0


class SaveLast(Callback):
    """Saves run_dir/checkpoints/last.ckpt every so many cycles or minutes, when the run is asked to stop, at the end.

    All ranks save after the same cycle: the first one's clock counts, and a signal that meets any of them. While
    updates are being skipped only a signal makes a checkpoint, so that the last one is from before the trouble.
    """

    KEEP, STOP = 1, 2

    def __init__(self, run_dir: Path, schedule: Schedule, request: StopRequest) -> None:
        self.path, self.schedule, self.request, self.saved = run_dir / LAST, schedule, request, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        del trainer, pl_module
        self.request.listen()
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        cycle, wish = int(pl_module.cycle), self.wish(trainer)
        stays = self.schedule.keep_every and cycle % self.schedule.keep_every == 0
        due = wish or stays or cycle % self.schedule.save_every == 0
        if wish == self.STOP or (due and not pl_module.skipping):
            self.save(trainer)
        if stays and trainer.is_global_zero and what_cycle(self.path) == cycle:
            also(self.path, self.path.with_name(f"{cycle:08d}.ckpt"))
        if wish == self.STOP:
            self.request.leave(trainer, cycle)

    def wish(self, trainer: Trainer) -> int:
        """The same on every rank."""
        due = trainer.is_global_zero and time.monotonic() - self.saved >= 60 * self.schedule.save_minutes
        return all_reduce_max(training_ranks(), self.STOP if self.request.received else self.KEEP * due)

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        self.save(trainer)
        if self.wish(trainer) == self.STOP:
            self.request.leave(trainer, int(pl_module.cycle))

    def save(self, trainer: Trainer) -> None:
        """The log's rows first: a resumed run adds those of its own cycles alone."""
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)
        self.saved = time.monotonic()
