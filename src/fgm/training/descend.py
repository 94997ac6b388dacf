"""One update of one network under manual optimization."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fgm.errors import Refusal
from fgm.training.optimizers import parameters_of
from fgm.training.sharding import whole

PATIENCE = 20


class Diverged(Refusal):
    """Training met non-finite gradients PATIENCE times in a row."""


class Descent:
    """Backward, clip, step unless the gradient is not finite, and move the learning rate on.

    Args:
        name: of the network, for messages.
        index: of its optimizer. The first one's steps are Lightning's global_step; the others step underneath it.
        clip: largest L2 norm of the gradient.

    Attributes:
        taken, skipped: updates that were made, since the process began, and that were left out, in all.
        in_a_row: left out since the last one that was made.
    """

    def __init__(self, name: str, index: int, clip: float) -> None:
        self.name, self.index, self.clip = name, index, clip
        self.taken, self.skipped, self.in_a_row = 0, 0, 0

    def __call__(self, module: LightningModule, loss: Tensor) -> Tensor:
        """The gradient's norm before clipping.

        Raises:
            Diverged: after PATIENCE skipped updates in a row.
        """
        optimizer = listed(module.optimizers())[self.index]
        optimizer.zero_grad(set_to_none=True)
        module.manual_backward(loss)
        norm = self.clipped(list(parameters_of(optimizer.optimizer)))
        if torch.isfinite(norm):
            (optimizer.optimizer if self.index else optimizer).step()
            self.taken, self.in_a_row = self.taken + 1, 0
        else:
            self.skip()
        optimizer.zero_grad(set_to_none=True)
        listed(module.lr_schedulers())[self.index].step()
        return norm

    def clipped(self, parameters: list[nn.Parameter]) -> Tensor:
        """The norm over all shards, which is the same on all ranks, and so is what is made of it."""
        norm = whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        clip_grads_with_norm_(parameters, self.clip, norm)
        return norm

    def skip(self) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == PATIENCE:
            raise Diverged(f"{self.name}: {PATIENCE} non-finite gradients in a row: lower optimizer.lr")


def listed(one_or_many: Any) -> Sequence[Any]:
    """Lightning hands out a single optimizer or scheduler bare, and several in a list."""
    return one_or_many if isinstance(one_or_many, Sequence) else [one_or_many]
