"""What every training shares: the pieces that a method is given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fgm.data import Data
from fgm.paths import Path
from fgm.streams import stream
from fgm.times import TimeDensity


@dataclass(frozen=True)
class Setting:
    """Everything but the method itself.

    Attributes:
        seed: of all noise, times, labels and batches.
        cycles: number of training steps; a distillation's step is one whole cycle.
        batch_size: samples a step and device.
        net: a fresh velocity network.
        path, time: where x_t comes from.
        optimizer: from a network to its optimizer.
        warmup: cycles of linear growth of the learning rate.
        decay: share of the cycles, at the end, of linear decay of the learning rate to zero.
        clip: largest L2 norm of a network's gradient.
        ema_decay: of the averaged weights, per step.
        data: the training set; a distillation asks it for its shape and classes alone.
        teacher: the frozen velocity, where there is one.
    """

    seed: int
    cycles: int
    batch_size: int
    net: nn.Module
    path: Path
    time: TimeDensity
    optimizer: Callable[[nn.Module], Optimizer]
    warmup: int
    decay: float
    clip: float
    ema_decay: float
    data: Data
    teacher: nn.Module | None = None

    def stream(self, role: str, rank: int, index: int) -> Generator:
        """The generator of one role in one cycle on one rank."""
        return stream(self.seed, role, rank, index=index)

    def noisy(self, x_0: Tensor, time: TimeDensity, noise: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, c and t, for t and eps drawn from noise; float32, on x_0's device."""
        t = time.sample(len(x_0), noise, x_0.dtype).to(x_0.device)
        eps = torch.randn(x_0.shape, generator=noise, dtype=x_0.dtype).to(x_0.device)
        x_t, c = self.path.interpolate(x_0, eps, t)
        return x_t, c, t
