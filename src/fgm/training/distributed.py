"""How a training spreads over devices. batch_size is per device; rank r draws its noise from its own keyed generators.

single    one device
ddp       every device holds everything; one all-reduce per update averages the gradients of the network that is stepped
fsdp      every device holds a shard of every weight, gradient and optimizer state (FSDP2):
              forward, backward    a block gathers its weights, computes and frees them; one block at a time is complete
              after backward       its gradients are averaged over the ranks in float32, each rank keeping its shard

Under DDP a step has several backwards through several networks in one forward of the wrapper. Its reducer then needs
find_unused_parameters, and skip_all_reduce_unused_params so that each backward sends one network's gradients; with a static
graph or the defaults it fails or lets the ranks drift apart silently, so ReplicaConsistencyCheck compares checksums. FSDP1 is
not offered: it cannot run a backward inside its forward.

Under FSDP2 with bf16 the weights are rounded before they travel, all of them, while autocast leaves norms and tables in
float32; x_t, t, the shards and the optimizer's arithmetic stay float32. Blocks free their weights after every forward:
otherwise a later forward would not see the optimizer's step. Checkpoints have the same names and shapes under every strategy:
shards are gathered, rank 0 writes one file, and each rank maps it and copies only its shards.

Several nodes are started by torchrun or SLURM:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m fgm.cli.train \\
        experiment=sd3_fgm strategy=fsdp strategy.nodes=2 trainer.devices=8
    srun --nodes 2 --ntasks-per-node 8 python -m fgm.cli.train ... with the same settings

with run_dir on a file system that all nodes share.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from fgm.networks import VelocityModel
from fgm.networks.mixed_precision import use_autocast
from fgm.training.optim import CombinedOptimizer, parameters_of
from fgm.utils.distributed import TIMEOUT, ProcessGroup, Ranks, SingleProcess
from fgm.utils.errors import UserError, rank
from fgm.utils.validation import validated

BLOCKS = ("blocks", "transformer_blocks")  # module lists whose members are sharded one by one


class Strategy(Protocol):
    """A strategy of configs/strategy; nodes: machines with as many devices each."""

    @property
    def nodes(self) -> int: ...

    def build(self, devices: int) -> Any:
        """Return what Lightning's Trainer takes as its strategy."""
        ...


@dataclass(frozen=True)
class Single:
    nodes: int = 1

    def build(self, devices: int) -> str:
        if devices * self.nodes > 1:
            raise UserError(f"trainer.devices = {devices} needs a strategy for several: give strategy=ddp or fsdp")
        return "auto"


SINGLE = Single()


@validated
@dataclass(frozen=True)
class DDP:
    nodes: PositiveInt = 1

    def build(self, devices: int) -> DDPStrategy:
        return DDPStrategy(
            find_unused_parameters=True, skip_all_reduce_unused_params=True,
            gradient_as_bucket_view=True, forward_sync_buffers=False,
        )  # fmt: skip


@validated
@dataclass(frozen=True)
class FSDP:
    nodes: PositiveInt = 1

    def build(self, devices: int) -> "ShardedStrategy":
        return ShardedStrategy(data_parallel_size=devices * self.nodes, tensor_parallel_size=1)


def training_ranks() -> Ranks:
    """Return a gloo group beside the training's own, or SingleProcess on one rank; all ranks must call it.

    Objects and flags travel from host to host through it, wait for no device, and have a time-out of their own.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return SingleProcess()
    return gloo_group(torch.distributed.group.WORLD)


@cache
def gloo_group(world: object) -> ProcessGroup:
    """Return one group for the life of `world`."""
    del world
    return ProcessGroup(torch.distributed.new_group(backend="gloo", timeout=TIMEOUT))


def shard(net: VelocityModel, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Shard a network in place.

    Args:
        net: complete, with the same weights on all ranks.
        mesh: of one dimension, the ranks.
        compute: dtype of its arithmetic wherever it is called from now on; None leaves that to the caller.
    """
    policy = MixedPrecisionPolicy(compute, compute and torch.float32, cast_forward_inputs=False)
    for part in (*blocks_to_shard(net), net):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    if compute:
        use_autocast(net, compute)


def blocks_to_shard(net: nn.Module) -> list[nn.Module]:
    """Return the equal blocks of a transformer; none of another network, which is sharded as one unit."""
    lists = (module for name, module in net.named_modules() if name.rpartition(".")[2] in BLOCKS)
    return [block for several in lists if isinstance(several, nn.ModuleList) for block in several]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard, in the same memory; a tensor that is not sharded itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor put together from all ranks' shards; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def clip_gradients(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Clip in place; return the L2 norm before clipping, over all shards of all ranks, ()."""
    parameters = list(parameters_of(optimizer))
    norm = full_tensor(get_total_norm([p.grad for p in parameters if p.grad is not None]))
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def gather_state(tree: Any) -> Any:
    """Return the same containers with full tensors on the host of rank 0, None on other ranks; all must call it."""

    def to_host(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensor = full_tensor(leaf.detach())
        return None if rank() else tensor.cpu()

    return tree_map(to_host, tree)


def as_shards_of(target: Any, tensor: Tensor) -> Tensor:
    """Return a copy of a full tensor, or of this rank's shard of it if the target is sharded."""
    if isinstance(target, DTensor):
        tensor = distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor.clone()


@contextmanager
def unsharded(sampler: nn.Module) -> Iterator[None]:
    """Keep all weights of every network inside on every rank, so that each rank may call it as often as it needs."""
    parts = [module for module in sampler.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 by Lightning with the checkpoints of every other strategy; the module shards itself in configure_model."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return gather_state(ParallelStrategy.lightning_module_state_dict(self))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return gather_state(ParallelStrategy.optimizer_state(self, optimizer))

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
            optimizer.load_state_dict(shard_optimizer_state(optimizer, state))


def shard_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state in the shards of its parameters; what has another shape than its parameter is not sharded."""
    if isinstance(optimizer, CombinedOptimizer):
        parts = zip(optimizer.parts, state["parts"], strict=True)
        return {"parts": [shard_optimizer_state(part, saved) for part, saved in parts]}
    parameters = list(parameters_of(optimizer))

    def sharded(i: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return as_shards_of(parameters[i] if value.shape == parameters[i].shape else None, value)

    each = {i: {name: sharded(i, value) for name, value in saved.items()} for i, saved in state["state"].items()}
    return state | {"state": each}
