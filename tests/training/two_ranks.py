"""Distillations for two gloo ranks, and one process's that has the batches of both.

python two_ranks.py <folder> <steps> [late] trains slowly under DDP and prints each step; the first rank is LATE to end, as
one is that uploads its log.
"""

import atexit
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from torch import Generator, Tensor

from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.point_metrics import PointMetrics
from fgm.flow.paths import RectifiedPath
from fgm.flow.times import LogitNormal
from fgm.networks.mlp import VelocityMLP
from fgm.training.config import TrainingConfig
from fgm.training.distillation import Distillation
from fgm.training.distributed import DDP
from fgm.training.trainer import Run, fit
from fgm.utils.errors import rank, resumable
from fgm.utils.random import keyed_generator

CONFIG = TrainingConfig(
    max_steps=6, batch_size=8, warmup_steps=1, lr_decay_fraction=0.5, gradient_clip_val=1.0, ema_half_life=0.5,
    log_every_n_steps=2, save_every_n_steps=100,
)  # fmt: skip

LATE = 6.0  # seconds; Lightning's launcher looks every 5 whether a rank is gone


def sgd(net: torch.nn.Module) -> torch.optim.Optimizer:
    """Momentum, but no division by a gradient's size: rounding stays as small as it is."""
    return torch.optim.SGD(net.parameters(), 0.05, 0.9)


def network(seed: int = 0) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=2, width=16, depth=1)


def distillation(steps: int, method: type[Distillation] = Distillation) -> Distillation:
    config = replace(CONFIG, max_steps=steps)
    return method(
        network(1), Ring(), RectifiedPath(), LogitNormal(), sgd, config, network, t_star=0.9, online_steps=2
    )  # fmt: skip


class BothRanks:
    """The generators of both ranks for one role."""

    def __init__(self, *each: Generator) -> None:
        self.each = each


class FullBatch(Distillation):
    """One process, one batch, which is that of two ranks."""

    def rng(self, role: str, index: int) -> Any:
        return BothRanks(*(keyed_generator(self.seed, role, rank, index=index) for rank in range(2)))

    def times_and_noise(self, x_0: Tensor, times: Any, rng: Any) -> tuple[Tensor, Tensor]:
        each = [
            super(FullBatch, self).times_and_noise(x, times, r) for x, r in zip(x_0.chunk(2), rng.each, strict=True)
        ]
        t, eps = (torch.cat(parts) for parts in zip(*each, strict=True))
        return t, eps

    def latents(self, step: int) -> tuple[Tensor, None, None]:
        shape = (self.config.batch_size, 2)
        return torch.cat([self.normal(shape, rng) for rng in self.rng("latent", step).each]), None, None


def run(module: Any, folder: Path, strategy: Any, devices: int, every: int = 0, precision: Any = "32-true") -> None:
    console = Console(quiet=rank() > 0)
    plan = Evaluator(PointMetrics(Ring()), every=every, n_in_training=1024, batch=512)
    trainer = partial(Trainer, accelerator="cpu", devices=devices, precision=precision)
    fit(module, Run(folder, "test", {"config_digest": "0"}, plan, console, trainer, strategy))  # type: ignore[arg-type]


def main(folder: str, steps: str, *late: str) -> None:
    resumable()
    if late and rank() == 0:
        atexit.register(time.sleep, LATE)
    module = distillation(int(steps))
    step = module.training_step

    def slow_step(batch: Any) -> None:
        sys.stdout.write(f"rank {rank()} step {int(module.step)}\n")  # in one, or the other rank's may cut in
        sys.stdout.flush()
        time.sleep(0.05)
        step(batch)

    module.training_step = slow_step  # type: ignore[method-assign]
    run(module, Path(folder), DDP(), 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
