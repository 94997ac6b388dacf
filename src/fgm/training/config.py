"""How long a training runs, on how much at once, and how often it reports."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from fgm.utils.validation import validated


@validated
@dataclass(frozen=True)
class TrainingConfig:
    """
    Attributes:
        max_steps: training steps.
        batch_size: samples per step and device.
        warmup_steps: steps of linear growth of the learning rate.
        lr_decay_fraction: share of the steps, at the end, over which the learning rate falls to zero.
        lr_schedule: how it falls; constant: not at all.
        gradient_clip_val: largest L2 norm of a network's gradient.
        ema_half_life: of the averaged weights, as a share of the images seen so far; 0 for no average, see ema.py.
        ema_max_half_life: upper limit of that half-life, in images.
        ema_extra: half-lives of further averages, which are measured beside the exported one.
        log_every_n_steps: steps between log entries; a shorter training logs at its end.
        save_every_n_steps, save_every_minutes: a checkpoint is written when either has passed.
        keep_every_n_steps: steps between checkpoints that are never deleted; 0 for none.
        micro_batches: parts of a batch whose graphs are in memory in turn.
        ema_device: where averaged weights are kept, see ema.py.
        compile: torch.compile every block, see CompileBlocks.
    """

    max_steps: PositiveInt
    batch_size: PositiveInt
    warmup_steps: NonNegativeInt = 0
    lr_decay_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    gradient_clip_val: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 10.0
    ema_half_life: Annotated[float, Field(ge=0, allow_inf_nan=True)] = 0.2
    ema_max_half_life: Annotated[float, Field(gt=0, allow_inf_nan=True)] = inf
    ema_extra: tuple[NonNegativeFloat, ...] = ()
    log_every_n_steps: PositiveInt = 50
    save_every_n_steps: PositiveInt = 100
    save_every_minutes: Annotated[float, Field(gt=0, allow_inf_nan=True)] = inf
    keep_every_n_steps: NonNegativeInt = 0
    micro_batches: PositiveInt = 1
    ema_device: Literal["same", "cpu"] = "same"
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_every_n_steps", min(self.log_every_n_steps, self.max_steps))
        object.__setattr__(self, "ema_extra", tuple(dict.fromkeys(self.ema_extra)))
        if self.micro_batches > self.batch_size:
            raise ValueError(
                f"training.micro_batches = {self.micro_batches} is more than training.batch_size = {self.batch_size}"
            )
