"""One update of one network under manual optimization."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fgm.training.optimizers import parameters_of
from fgm.training.sharding import whole
from fgm.utils.errors import UserError

PATIENCE = 20


class DivergenceError(UserError):
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

    def __call__(self, module: LightningModule, loss: Tensor, *others: Callable[[], Tensor]) -> Tensor:
        """The norm, before clipping, of the gradient of a sum: loss, and others that are formed one after another.

        Whether it is finite decides whether to step, so that the host waits for the device here, once an update.

        Raises:
            DivergenceError: after PATIENCE skipped updates in a row.
        """
        optimizer = listed(module.optimizers())[self.index]
        optimizer.zero_grad(set_to_none=True)
        with alone(module) if others else nullcontext():
            module.manual_backward(loss)
        for number, other in enumerate(others, 1):
            with alone(module) if number < len(others) else nullcontext():
                module.manual_backward(other())
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
            raise DivergenceError(f"{self.name}: {PATIENCE} non-finite gradients in a row: lower optimizer.lr")


def alone(module: LightningModule) -> AbstractContextManager[Any]:
    """A backward whose gradients stay on their rank: the last one of an update sends the sum of all."""
    return getattr(module.trainer.strategy, "block_backward_sync", nullcontext)()


def listed(one_or_many: Any) -> Sequence[Any]:
    """Lightning hands out a single optimizer or scheduler bare, and several in a list."""
    return one_or_many if isinstance(one_or_many, Sequence) else [one_or_many]
