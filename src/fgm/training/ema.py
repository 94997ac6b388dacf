"""Exponential moving averages of one network's weights, each as wide as a share h of the training so far.

    ema_n = beta_n ema_(n-1) + (1 - beta_n) weights_n,      beta_n = 0.5^(m / min(h n, H))

with n the images seen and m those of one step: half-life h n, as in the ramp-up of EDM (arXiv 2206.00364, training loop), and
never more than H images. While h n < H it is EDM2's power function (arXiv 2312.02696, section 3.1): for m << h n,

    ema_n = (gamma + 1) / n^(gamma + 1)  integral from 0 to n of  tau^gamma weights_tau dtau,      gamma + 1 = ln 2 / h

whose half weight lies on the last 1 - exp(-h) of the images, about h. So one h fits a training of any length, and the start,
with weight about n^-(gamma + 1), is forgotten. A half-life in steps would suit one length; a share of the whole
training's length would need that length, and a run made longer would have averaged otherwise all along. H serves
recipes that state a number of images.

The averages lie beside the weights, or in the host's memory, which takes them off a device that is full:
ema_device = cpu. Every step then brings the weights over, one tensor at a time, and waits for it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import inf
from typing import Literal, TypeVar

import torch
from torch import nn

from fgm.training.distributed import local
from fgm.training.optim import constrain
from fgm.utils.errors import UserError

Net = TypeVar("Net", bound=nn.Module)
EmaDevice = Literal["same", "cpu"]


def frozen_copy(net: Net) -> Net:
    return deepcopy(net).requires_grad_(False).eval()


def ema_decay(half_life: float, images_seen: int, images: int, max_half_life: float = inf) -> float:
    """Return beta_n for h = half_life, n = images_seen > 0, m = images and H = max_half_life; 0 if h = 0."""
    width = min(half_life * images_seen, max_half_life)
    return 0.5 ** (images / width) if width else 0.0


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


def align(online: nn.Module, generator: nn.Module, decay: float) -> None:
    """Pull the online network towards the generator's: online <- decay online + (1 - decay) generator; decay = 1 does nothing.

    SenseFlow's implicit distribution alignment (arXiv 2506.00523): the online network follows the generator's samples sooner.

    Raises:
        UserError: the networks differ in shape.
    """
    if decay == 1:
        return
    if [p.shape for p in online.parameters()] != [p.shape for p in generator.parameters()]:
        raise UserError(
            f"method.ida_decay = {decay}: generator and online network are not of one architecture; set it to 1"
        )
    update_ema(online, generator, decay)
    constrain(online)


@contextmanager
def brought(averages: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """The averages on the device, for as long as samples are drawn from them."""
    homes = [(ema, next((p.device for p in ema.parameters()), device)) for ema in averages]
    for ema, _ in homes:
        ema.to(device)
    try:
        yield
    finally:
        for ema, home in homes:
            ema.to(home)
