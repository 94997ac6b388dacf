"""How a training spreads over devices. batch_size is a device's; rank r draws its noise from streams of its own.

single    one device
ddp       every device holds everything; one all-reduce a backward averages the gradients of the net that is stepped
fsdp      every device holds a shard of everything, see sharding.py

Under DDP a cycle has several backwards through several nets in one forward of the wrapper. Its reducer then needs
find_unused_parameters, and skip_all_reduce_unused_params so that each backward sends one net's gradients; a graph
called static, or the defaults, fail or let the ranks drift apart without a word. The ranks' checksums are therefore
compared after the first cycles (SameOnAllRanks). FSDP1 is not offered: it cannot run a backward inside of its forward.

Several nodes are started by torchrun or SLURM, and found by Lightning in the environment that these leave:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m fgm.cli.train \\
        experiment=sd3_fgm strategy=fsdp strategy.nodes=2 trainer.devices=8
    srun --nodes 2 --ntasks-per-node 8 python -m fgm.cli.train ... with the same settings

with run_dir on a file system that all of them share.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from pydantic import PositiveInt
from torch import Tensor
from torch.distributed.tensor import DTensor

from fgm.training.method import Method
from fgm.training.ranks import training_ranks
from fgm.training.sharded import ShardedStrategy
from fgm.utils.errors import UserError
from fgm.utils.validation import validated

CHECKED = 10  # cycles


class Strategy(Protocol):
    """nodes: machines with as many devices each."""

    @property
    def nodes(self) -> int: ...

    def engine(self, devices: int) -> Any:
        """What Lightning's Trainer takes as its strategy."""
        ...


@validated
@dataclass(frozen=True)
class Single:
    """One device."""

    nodes: int = 1

    def engine(self, devices: int) -> str:
        if devices * self.nodes > 1:
            raise UserError(f"trainer.devices = {devices} needs a strategy for several: give strategy=ddp or fsdp")
        return "auto"


SINGLE = Single()


@validated
@dataclass(frozen=True)
class DistributedCopies:
    """DDP."""

    nodes: PositiveInt = 1

    def engine(self, devices: int) -> DDPStrategy:
        del devices
        return DDPStrategy(
            find_unused_parameters=True, skip_all_reduce_unused_params=True,
            gradient_as_bucket_view=True, forward_sync_buffers=False,
        )  # fmt: skip


@validated
@dataclass(frozen=True)
class Shards:
    """FSDP2."""

    nodes: PositiveInt = 1

    def engine(self, devices: int) -> ShardedStrategy:
        return ShardedStrategy(data_parallel_size=devices * self.nodes, tensor_parallel_size=1)


class SameOnAllRanks(Callback):
    """Stops a training whose ranks hold different copies after one of the first cycles, and says so.

    Raises:
        RuntimeError: they do.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, *_: Any) -> None:
        if trainer.world_size == 1 or trainer.global_step > CHECKED:
            return
        copies = (tensor for tensor in pl_module.state_dict().values() if not isinstance(tensor, DTensor))
        sums = training_ranks().all_gather(checksum(copies))
        if len(set(sums)) > 1:
            raise RuntimeError(f"cycle {int(pl_module.cycle)}: the ranks' weights differ; checksums {sums}")


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """Of their bits: the sum of all bytes, each tensor's times its number."""
    total = 0
    for i, tensor in enumerate(tensors, 1):
        total += i * int(tensor.detach().contiguous().flatten().view(torch.uint8).long().sum())
    return total
