"""Exponential moving average of one network's weights: ema <- ema + (1 - decay) (weights - ema)."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from fgm.training.sharding import local

Net = TypeVar("Net", bound=nn.Module)


def frozen_copy(net: Net) -> Net:
    return deepcopy(net).requires_grad_(False).eval()


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """One step of the average, in place; buffers are copied. Each rank averages its own shards."""
    averaged, followed = ([local(p) for p in module.parameters()] for module in (ema, net))
    torch._foreach_lerp_(averaged, followed, 1 - decay)
    for buffer, current in zip(ema.buffers(), net.buffers(), strict=True):
        buffer.copy_(current)
