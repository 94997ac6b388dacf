"""Checkpoints that are whole or absent: written beside their name, flushed to disk, then renamed onto it."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fgm.training.method import Method

LAST = Path("checkpoints") / "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """torch.save in the target's own folder, fsync, os.replace. Loads with weights_only=True, as Lightning does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


class SaveLast(Callback):
    """Saves run_dir/checkpoints/last.ckpt every `every` cycles and at the end."""

    def __init__(self, run_dir: Path, every: int) -> None:
        self.path, self.every = run_dir / LAST, every

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        if int(pl_module.cycle) % self.every == 0:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        del pl_module
        trainer.save_checkpoint(self.path)
