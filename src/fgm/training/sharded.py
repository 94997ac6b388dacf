"""FSDP2 by Lightning, with the checkpoints of every other strategy.

Shards are put together for a checkpoint, which the first rank writes: one file with the names, the shapes and the
guarantees of checkpoints.py. What is saved by any number of ranks goes on on any other, under any strategy. Each rank
maps the file, and copies no more than its own shards out of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch.optim import Optimizer

from fgm.training.optimizers import Joint, parameters_of
from fgm.training.sharding import as_shards_of, gathered


class ShardedStrategy(ModelParallelStrategy):
    """Its module shards its networks in configure_model."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gathered(ParallelStrategy.lightning_module_state_dict(self))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return gathered(ParallelStrategy.optimizer_state(self, optimizer))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        ours, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        shards = {name: as_shards_of(ours.get(name), tensor) for name, tensor in saved.items()}
        self.lightning_module.load_state_dict(shards, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(in_shards(optimizer, state))


def in_shards(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state in the shards of the parameters that it belongs to; what is not of a parameter's shape is whole."""
    if isinstance(optimizer, Joint):
        return {"parts": [in_shards(*part) for part in zip(optimizer.parts, state["parts"], strict=True)]}
    parameters = list(parameters_of(optimizer))

    def of(i: int, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return as_shards_of(parameters[i] if value.shape == parameters[i].shape else None, value)

    each = {i: {name: of(i, value) for name, value in held.items()} for i, held in state["state"].items()}
    return state | {"state": each}
