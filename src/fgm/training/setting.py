"""What every training is given: the pieces, how long, and how much at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fgm.data import Data
from fgm.flow.paths import ProbabilityPath
from fgm.flow.times import TimestepDensity
from fgm.networks import VelocityModel
from fgm.training.ema import EmaDevice
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class Schedule:
    """How long, how much at once, and how often to report.

    Attributes:
        cycles: of training; a pre-training's cycle is one step, a distillation's all its turns.
        batch_size: samples a cycle and device.
        warmup: cycles of linear growth of the learning rate.
        decay: share of the cycles, at the end, of linear decay of the learning rate to zero.
        clip: largest L2 norm of a network's gradient.
        ema_decay: of the averaged weights, a cycle.
        log_every: cycles between log entries; a training that is shorter has one at its end.
        save_every: cycles between checkpoints.
        save_minutes: after which there is a checkpoint in any case.
        keep_every: cycles between checkpoints that stay when newer ones come; 0 for none.
        micro_batches: parts of a batch whose graphs are in memory in turn, see micro_batches.py.
        ema_device: where the average is kept, see ema.py.
    """

    cycles: PositiveInt
    batch_size: PositiveInt
    warmup: NonNegativeInt
    decay: Annotated[float, Field(ge=0, le=1)]
    clip: Annotated[float, Field(gt=0, allow_inf_nan=True)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    log_every: PositiveInt
    save_every: PositiveInt
    save_minutes: Annotated[float, Field(gt=0, allow_inf_nan=True)] = inf
    keep_every: NonNegativeInt = 0
    micro_batches: PositiveInt = 1
    ema_device: EmaDevice = "same"

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_every", min(self.log_every, self.cycles))
        if self.micro_batches > self.batch_size:
            raise ValueError(
                f"training.micro_batches = {self.micro_batches} is more than training.batch_size = {self.batch_size}"
            )


@dataclass(frozen=True)
class Setting:
    """Everything but the method itself.

    Attributes:
        seed: of all noise, times, labels and batches.
        schedule: see Schedule.
        make_net: makes a fresh velocity network; called once, and only where one is needed.
        path, time: where x_t comes from.
        optimizer: from a network to its optimizer.
        data: the training set; a distillation asks it for its shape and classes alone.
        teacher: the frozen velocity, where there is one.
    """

    seed: int
    schedule: Schedule
    make_net: Callable[[], VelocityModel]
    path: ProbabilityPath
    time: TimestepDensity
    optimizer: Callable[[nn.Module], Optimizer]
    data: Data
    teacher: VelocityModel | None = None

    @cached_property
    def net(self) -> VelocityModel:
        """The fresh network."""
        return self.make_net()

    def stream(self, role: str, rank: int, index: int, device: torch.device | str = "cpu") -> Generator:
        """The generator of one role on one rank, in one cycle or turn; each kind of device has numbers of its own."""
        return keyed_generator(self.seed, role, rank, index=index, device=device)

    def noisy(self, x_0: Tensor, time: TimestepDensity, noise: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, c and t, for t and eps drawn from noise, which lives on x_0's device; in x_0's dtype."""
        t = time.sample(len(x_0), noise, x_0.dtype)
        eps = torch.randn(x_0.shape, generator=noise, dtype=x_0.dtype, device=noise.device)
        x_t, c = self.path.interpolate(x_0, eps, t)
        return x_t, c, t
