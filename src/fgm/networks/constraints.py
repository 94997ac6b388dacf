"""Layers whose weights lie on a set of their own, to which each update of an optimizer must bring them back.

An optimizer's step leaves the set; constrain, after it, returns. What a network computes is the same before and after
up to rounding, but not how fast it learns from there on.
"""

from abc import abstractmethod

import torch
from torch import nn
from torch.optim import Optimizer


class Constrained(nn.Module):
    """A layer with such weights."""

    @abstractmethod
    def constrain(self) -> None:
        """Brings the weights back, in place."""


@torch.no_grad()
def constrain(net: nn.Module) -> None:
    """Every such layer's weights; nothing in a network that has none."""
    for module in net.modules():
        if isinstance(module, Constrained):
            module.constrain()


def constrained(optimizer: Optimizer, net: nn.Module) -> Optimizer:
    """optimizer of net, each of whose steps ends on the set."""
    if any(isinstance(module, Constrained) for module in net.modules()):
        optimizer.register_step_post_hook(lambda *_: constrain(net))
    return optimizer
