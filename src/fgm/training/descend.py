"""One update of one network under manual optimization."""

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fgm.training.optimizers import parameters_of

PATIENCE = 20


class Diverged(RuntimeError):
    """Training met non-finite gradients PATIENCE times in a row."""


class Descent:
    """Backward, clip, and step unless the gradient is not finite.

    Attributes:
        skipped: updates left out, in all.
    """

    def __init__(self, name: str, clip: float) -> None:
        self.name, self.clip, self.skipped, self.in_a_row = name, clip, 0, 0

    def __call__(self, module: LightningModule, optimizer: LightningOptimizer, loss: Tensor, counted: bool) -> Tensor:
        """The gradient's norm before clipping. Lightning's global_step advances if counted.

        Raises:
            Diverged: after PATIENCE skipped updates in a row.
        """
        optimizer.zero_grad(set_to_none=True)
        module.manual_backward(loss)
        norm = clip_grad_norm_(list(parameters_of(optimizer.optimizer)), self.clip)
        if torch.isfinite(norm):
            self.in_a_row = 0
            (optimizer if counted else optimizer.optimizer).step()
        else:
            self.skip()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def skip(self) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == PATIENCE:
            raise Diverged(f"{self.name}: {PATIENCE} non-finite gradients in a row; lower the learning rate or raise online_turns")
