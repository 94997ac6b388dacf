"""Checkpoints that are whole or absent: written beside their name, flushed to disk, then renamed onto it.

last.ckpt         of the newest saved cycle
previous.ckpt     the one before it, for when last.ckpt is damaged
best.safetensors  see SaveBest
"""

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console

from fgm.errors import Refusal
from fgm.training.method import Method
from fgm.training.stopping import StopRequest

LAST = Path("checkpoints") / "last.ckpt"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)
PREVIOUS = LAST.with_name("previous.ckpt")
BEST = Path("checkpoints") / "best.safetensors"


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
            temporary.unlink(missing_ok=True)
            if not unwritable(error):
                raise
            self.console.print(f"warning: {path} is not written ({reason(error)}): {what_stays(path)}; free some space")
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


def unwritable(error: BaseException) -> bool:
    """Whether the disk is full or may not be written; torch.save tells an OSError in words of its own."""
    known = error if isinstance(error, OSError) else error.__context__
    return isinstance(known, OSError) and known.errno in UNWRITABLE


def reason(error: BaseException) -> str:
    """The operating system's words."""
    known = error if isinstance(error, OSError) else error.__context__
    return str(known.strerror if isinstance(known, OSError) else error)


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
    return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]["cycle"])


def last_checkpoint(run_dir: Path, console: Console) -> tuple[Path | None, int]:
    """The checkpoint to go on from, if there is one, and its cycle; the one before it where the last is damaged.

    Raises:
        Refusal: there are some, and none is whole.
    """
    found = {path: damage(path) for path in (run_dir / LAST, run_dir / PREVIOUS) if path.exists()}
    whole = next((path for path, wrong in found.items() if not wrong), None)
    for path, wrong in found.items():
        if wrong and whole is None:
            raise Refusal(f"{path} cannot be read ({wrong}): delete it to start again")
        if wrong:
            console.print(f"warning: {path} is damaged ({wrong}): going on from {whole}")
    return whole, read_cycle(whole) if whole else 0


class SaveLast(Callback):
    """Saves run_dir/checkpoints/last.ckpt every `every` cycles, when the run is asked to stop, and at the end."""

    def __init__(self, run_dir: Path, every: int, request: StopRequest) -> None:
        self.path, self.every, self.request = run_dir / LAST, every, request

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        del trainer, pl_module
        self.request.listen()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        asked = self.request.on_any_rank()
        if asked or int(pl_module.cycle) % self.every == 0:
            self.save(trainer)
        if asked:
            self.request.leave(int(pl_module.cycle))

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        del pl_module
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """The log's rows first: a resumed run adds those of its own cycles alone."""
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.path)
