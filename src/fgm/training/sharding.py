"""Networks in shards: each of n ranks holds an nth of every weight, of its gradient and of its optimizer state (FSDP2).

    forward, backward    a block gathers its weights, computes, and lets them go: one block at a time is whole
    after backward       the block's gradients are averaged over the ranks, in float32, each rank keeping its shard

Where arithmetic is bfloat16 the weights are rounded before they travel, all of them, where autocast would leave norms
and tables alone; x_t, t, the shards and what the optimizer does to them stay float32. Blocks and the rest of a network
give their weights back after every forward: kept whole, a later forward would not see the optimizer's step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from fgm.networks import VelocityModel
from fgm.networks.mixed_precision import use_autocast
from fgm.utils.errors import rank

BLOCKS = ("blocks", "transformer_blocks")  # lists whose members are sharded one by one


def shard(net: VelocityModel, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """In place.

    Args:
        net: whole, with the same weights on all ranks.
        mesh: of one dimension, the ranks.
        compute: dtype of its arithmetic, wherever it is called from now on; None leaves that to the caller.
    """
    policy = MixedPrecisionPolicy(compute, compute and torch.float32, cast_forward_inputs=False)
    for part in (*blocks_to_shard(net), net):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    if compute:
        use_autocast(net, compute)


def blocks_to_shard(net: nn.Module) -> list[nn.Module]:
    """Those of a transformer; none of a network that is not made of equal blocks, which is sharded as one whole."""
    lists = (module for name, module in net.named_modules() if name.rpartition(".")[2] in BLOCKS)
    return [block for several in lists if isinstance(several, nn.ModuleList) for block in several]


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, in the same memory; or the tensor itself, which every rank has whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Put together from all ranks' shards, on every rank; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tree: Any) -> Any:
    """The same containers with every tensor whole and on the host of the first rank; None elsewhere. All must ask."""

    def to_host(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensor = whole(leaf.detach())
        return None if rank() else tensor.cpu()

    return tree_map(to_host, tree)


def as_shards_of(target: Any, tensor: Tensor) -> Tensor:
    """A copy of the tensor, which every rank has whole, or of this rank's shard where the target is in shards."""
    if isinstance(target, DTensor):
        tensor = distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor.clone()


@contextmanager
def whole_on_every_rank(sampler: nn.Module) -> Iterator[None]:
    """Every network inside keeps all its weights, so that each rank may call the sampler as often as it needs to."""
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
