"""Networks that compute in bfloat16 wherever they are called: within a training of mixed precision, and without.

Under torch.autocast a matrix is rounded to bfloat16 at every call. One that is kept rounded gives the very same
numbers, in half the memory; tables, norms and whatever else autocast does not round stay as they are.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fgm.networks import VelocityModel


def halve(net: VelocityModel) -> VelocityModel:
    """Keeps the matrices of a frozen network in bfloat16, in place: its values and gradients are those of autocast."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    return compute_in(net, torch.bfloat16)


def compute_in(net: VelocityModel, dtype: torch.dtype) -> VelocityModel:
    """The same network, called under autocast from now on."""
    vars(net)["forward"] = partial(forward_in, net, dtype)
    return net


def forward_in(
    net: VelocityModel, dtype: torch.dtype, x_t: Tensor, t: Tensor, condition: Tensor | None = None
) -> Tensor:
    """net.forward with its arithmetic in dtype."""
    with torch.autocast(x_t.device.type, dtype):
        return type(net).forward(net, x_t, t, condition)
