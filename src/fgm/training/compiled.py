"""torch.compile of every network's blocks, in place: no name in a state dict changes, and checkpoints go both ways.

A block is a member of a network's outermost lists of modules. One is compiled where whole networks take minutes, and
blocks of equal shapes share what was compiled for one; gradient checkpointing stays around a block, outside of it.
The first cycles are slow: each block is compiled once with gradients of its weights, once without, once for neither.
"""

from collections.abc import Iterable

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from fgm.training.method import Method
from fgm.utils.errors import UserError

VARIANTS = 64  # of one block: which gradients are asked for, sizes of a batch, kinds of blocks


def blocks_to_compile(net: nn.Module) -> list[nn.Module]:
    """Also unequal ones, the levels of a U-Net; sharding.blocks_to_shard takes equal ones alone."""
    found: list[nn.Module] = []
    for child in net.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_to_compile(child)
    return found


def compile_blocks(nets: Iterable[nn.Module]) -> None:
    """
    Raises:
        UserError: a network has no blocks.
    """
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for net in nets:
        blocks = blocks_to_compile(net)
        if not blocks:
            raise UserError(f"trainer.compile = true: {type(net).__name__} has no blocks to compile; leave it out")
        for block in blocks:
            block.compile(dynamic=False)


class CompileBlocks(Callback):
    """Before the first cycle, and behind all copies of networks and changes to them."""

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        del trainer
        if getattr(pl_module, "adversary", None):
            raise UserError(
                "trainer.compile = true: the discriminator reads features by hooks on blocks; leave one out"
            )
        compile_blocks(pl_module.networks())
