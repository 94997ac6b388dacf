"""Two ranks of a slow distillation in forked processes, as torchrun's workers, to be met by signals."""

import multiprocessing
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from own_time import seconds_until
from ranks import free_port, torchrun
from rich.console import Console
from two_ranks import distillation

from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.point_metrics import PointMetrics
from fgm.training.callbacks import WorldChange
from fgm.training.distributed import SINGLE, DistributedCopies
from fgm.training.trainer import Run, fit
from fgm.utils.errors import rank, resumable


def train(folder: Path, cycles: int, pause: float = 0.0, change: WorldChange = "refuse", **schedule: Any) -> None:
    """On as many ranks as the environment tells; rank r's cycles are told in <r>.txt, what it prints in said.txt."""
    folder.mkdir(exist_ok=True)
    module = distillation(cycles)
    module.schedule = replace(module.schedule, **schedule)
    step = module.training_step

    def slow_step(batch: Any) -> None:
        (folder / f"{rank()}.txt").write_text(f"{int(module.cycle)}")
        time.sleep(pause)
        step(batch)

    module.training_step = slow_step  # type: ignore[method-assign]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with (folder / "said.txt").open("a") as said:
        console = Console(file=said, soft_wrap=True, quiet=rank() > 0)
        plan = Evaluator(PointMetrics(Ring()), every=0, n_in_training=64, batch=32)
        engine = SINGLE if world == 1 else DistributedCopies()
        config = {"config_digest": "0"}
        fit(
            module,
            Run(
                folder,
                "test",
                config,
                plan,
                console,
                partial(Trainer, accelerator="cpu", devices=world),
                engine,
                allow_world_size_change=change,
            ),
        )


def worker(environment: dict[str, str], folder: Path, cycles: int, options: dict[str, Any]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    resumable()
    try:
        train(folder, cycles, **options)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def started(folder: Path, cycles: int, world: int = 2, **options: Any) -> list[Any]:
    """The ranks' processes."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    environments = [torchrun(rank, world, port) if world > 1 else {} for rank in range(world)]
    ranks = [context.Process(target=worker, args=(e, folder, cycles, options)) for e in environments]
    for process in ranks:
        process.start()
    return ranks


def ended(ranks: list[Any]) -> tuple[list[int | None], float]:
    """Exit codes, and the seconds until they are there."""
    try:
        seconds = seconds_until(lambda: not any(p.is_alive() for p in ranks), [p.pid for p in ranks])
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks], seconds


def reached(folder: Path, cycle: int) -> None:
    """Waits until rank 1, or the only one, is in that cycle."""
    while not any(told(folder / f"{r}.txt") >= cycle for r in (0, 1)):
        time.sleep(0.01)


def told(file: Path) -> int:
    return int(file.read_text() or -1) if file.exists() else -1
