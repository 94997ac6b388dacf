"""python two_ranks.py <folder> <strategy> <cycles> [measured | slow [late] | double]: a distillation on two gloo ranks.

Writes <folder>/checkpoints/last.ckpt. Measured at cycle 3 and at every third one; or slow, and telling its cycles, and
the first rank is LATE to end, as one is that hands over its log.
"""

import atexit
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Generator, Tensor

from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.point_metrics import PointMetrics
from fgm.flow.paths import RectifiedPath
from fgm.flow.times import LogitNormal
from fgm.networks.mlp import VelocityMLP
from fgm.training.distillation import Distillation
from fgm.training.fit import Hardware, Run, fit
from fgm.training.method import Method
from fgm.training.setting import Schedule, Setting
from fgm.training.strategies import DistributedCopies, Shards
from fgm.utils.errors import rank, resumable

SCHEDULE = Schedule(cycles=6, batch_size=8, warmup=1, decay=0.5, clip=1.0, ema_decay=0.9, log_every=2, save_every=100)

LATE = 6.0  # seconds; Lightning's launcher looks every 5 whether a rank is gone


def sgd(net: torch.nn.Module) -> torch.optim.Optimizer:
    """Momentum, but no division by a gradient's size: rounding stays as small as it is."""
    return torch.optim.SGD(net.parameters(), 0.05, 0.9)


def network(seed: int) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=2, width=16, depth=1)


def distillation(cycles: int, kind: type[Setting] = Setting, method: type[Distillation] = Distillation) -> Distillation:
    schedule, teacher = replace(SCHEDULE, cycles=cycles), network(1)
    setting = kind(0, schedule, lambda: network(0), RectifiedPath(), LogitNormal(), sgd, Ring(), teacher)
    return method(setting, t_star=0.9, online_turns=2)


class BothRanks:
    """The generators of both ranks for one role."""

    def __init__(self, *each: Generator) -> None:
        self.each = each


class FullBatchSetting(Setting):
    def noisy(self, x_0: Tensor, time: Any, noise: Any) -> Any:
        if not isinstance(noise, BothRanks):
            return super().noisy(x_0, time, noise)
        parts = zip(x_0.chunk(2), noise.each, strict=True)
        drawn = [super(FullBatchSetting, self).noisy(x, time, generator) for x, generator in parts]
        return tuple(torch.cat(each) for each in zip(*drawn, strict=True))


class FullBatch(Distillation):
    """One process, one batch, which is that of two ranks."""

    def noise(self, role: str, index: int) -> Any:
        return BothRanks(*(self.setting.stream(role, rank, index) for rank in range(2)))

    def generate(self, cycle: int) -> tuple[Tensor, None]:
        shape = (self.schedule.batch_size, 2)
        z = [torch.randn(shape, generator=generator) for generator in self.noise("latent", cycle).each]
        return self.generator(torch.cat(z)), None


def run(module: Method, folder: Path, strategy: Any, devices: int, every: int = 0, precision: Any = "32-true") -> None:
    console = Console(quiet=rank() > 0)
    plan = Evaluator(PointMetrics(Ring()), every=every, n_in_training=64, batch=32)
    hardware = Hardware("cpu", devices, precision)
    fit(module, Run(folder, "test", "csv", {"config_digest": "0"}, hardware, plan, console, strategy))  # type: ignore[arg-type]


def main(folder: str, strategy: str, cycles: str, *how: str) -> None:
    resumable()
    if how[1:] == ("late",) and rank() == 0:
        atexit.register(time.sleep, LATE)
    module = distillation(int(cycles))
    step = module.training_step

    def slow_step(batch: Any) -> None:
        sys.stdout.write(f"rank {rank()} cycle {int(module.cycle)}\n")  # in one, or the other rank's may cut in
        sys.stdout.flush()
        time.sleep(0.05)
        step(batch)

    if how[:1] == ("slow",):
        module.training_step = slow_step  # type: ignore[method-assign]
    run(
        module,
        Path(folder),
        {"ddp": DistributedCopies(), "fsdp": Shards()}[strategy],
        2,
        every=3 if how == ("measured",) else 0,
        precision="64-true" if how == ("double",) else "32-true",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
