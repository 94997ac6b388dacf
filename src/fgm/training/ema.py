"""Exponential moving average of one network's weights: ema <- ema + (1 - decay) (weights - ema).

It lies beside the weights, or in the host's memory, which takes it off a device that is full: ema_device = cpu. Every
step then brings the weights over, one tensor at a time, and the average is formed there; a step waits for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, TypeVar

import torch
from torch import nn

from fgm.training.distributed import local

Net = TypeVar("Net", bound=nn.Module)
EmaDevice = Literal["same", "cpu"]


def frozen_copy(net: Net) -> Net:
    return deepcopy(net).requires_grad_(False).eval()


@torch.no_grad()
def update_ema(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """One step of the average, in place; buffers are copied. Each rank averages its own shards."""
    averaged, current = ([local(p) for p in module.parameters()] for module in (ema, net))
    if all(a.device == c.device for a, c in zip(averaged, current, strict=True)):
        torch._foreach_lerp_(averaged, current, 1 - decay)
    else:
        for a, c in zip(averaged, current, strict=True):
            a.lerp_(c.to(a.device), 1 - decay)
    for buffer, present in zip(ema.buffers(), net.buffers(), strict=True):
        buffer.copy_(present)


@contextmanager
def brought(ema: nn.Module, device: torch.device) -> Iterator[None]:
    """The average on the device, for as long as samples are drawn from it."""
    home = next((p.device for p in ema.parameters()), device)
    ema.to(device)
    try:
        yield
    finally:
        ema.to(home)
