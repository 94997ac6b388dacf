"""Run a network's arithmetic in bfloat16 wherever it is called, inside and outside mixed-precision training.

torch.autocast rounds a weight matrix to bfloat16 at every call. Storing the rounded matrix gives the same numbers in
half the memory; embedding tables, normalisations and whatever else autocast leaves alone stay in float32.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fgm.networks import VelocityModel


def use_bfloat16(net: VelocityModel) -> VelocityModel:
    """Store a frozen network's matrices in bfloat16, in place. Values and gradients equal those under autocast."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    return use_autocast(net, torch.bfloat16)


def use_autocast(net: VelocityModel, dtype: torch.dtype) -> VelocityModel:
    """Make every later call of net run under torch.autocast, in place."""
    vars(net)["forward"] = partial(forward_with_autocast, net, dtype)  # a partial survives deepcopy
    return net


def forward_with_autocast(
    net: VelocityModel, dtype: torch.dtype, x_t: Tensor, t: Tensor, condition: Tensor | None = None
) -> Tensor:
    with torch.autocast(x_t.device.type, dtype):
        return type(net).forward(net, x_t, t, condition)
