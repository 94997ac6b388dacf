"""A tiny distillation of digits that tests end in every way; in forked processes, so that torch is imported once."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.cli.synthetic import untrained
from fgm.training.checkpointing import LAST
from fgm.training.trainer import fit

TINY = [
    "network.width=16", "network.depth=1", "training.batch_size=2", "method.teacher_steps=2", "logger=csv",
    'teacher.overrides=["network.width=16","network.depth=1"]', "training.save_every_n_steps=1", "training.log_every_n_steps=2",
]  # fmt: skip


def tiny_config(run_dir: Path, cycles: int, *overrides: str) -> dict[str, Any]:
    return read_recipe("digits_fgm", [*TINY, f"training.max_steps={cycles}", f"run_dir={run_dir}", *overrides])


def run(config: dict[str, Any]) -> None:
    """To its end, or from where it was to there."""
    torch.set_num_threads(1)
    run_dir = Path(config["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "said.txt").open("a") as said:
        fit(*build(untrained(config), Console(file=said, soft_wrap=True)))


def child(work: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=(config,))
    process.start()
    return process


def killed(config: dict[str, Any], delay: float, after_checkpoint: bool) -> bool:
    """Whether the run was still going when SIGKILL met it, delay seconds after its start or its first checkpoint."""
    last = Path(config["run_dir"]) / LAST
    before, process = written(last), child(run, config)
    while after_checkpoint and process.is_alive() and written(last) == before:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode != 0


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def paced(config: dict[str, Any], cycles: int) -> tuple[float, float]:
    """Seconds that a whole run takes before its first checkpoint, and for a cycle after it."""
    last, began, process = Path(config["run_dir"]) / LAST, time.perf_counter(), child(run, config)
    while process.is_alive() and not last.exists():
        time.sleep(0.002)
    first = time.perf_counter()
    process.join()
    return first - began, (time.perf_counter() - first) / cycles


def moments(n: int, opening: float, cycle: float) -> list[tuple[float, bool]]:
    """Every fourth somewhere in the opening, the others within three cycles of a checkpoint, in their writing too."""
    draws = [random.Random(i).random() for i in range(n)]
    return [(opening * draw, False) if i % 4 == 3 else (3 * cycle * draw, True) for i, draw in enumerate(draws)]


def state(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / LAST, weights_only=True)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint."""
    return state(run_dir)["state_dict"]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """All leaves of a checkpoint, by their place."""
    if isinstance(node, dict | list | tuple):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}").items()}
    return {prefix: node}


@contextmanager
def dying(module: Any, cycle: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of this module, which dies in the middle of a cycle."""
    step = module.training_step

    def dies(batch: Any) -> None:
        if int(module.step) == cycle:
            raise RuntimeError("killed")
        step(batch)

    monkeypatch.setattr(module, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        yield


def whole_and_cut(
    made: Callable[[Path], tuple[Any, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch, cycle: int
) -> tuple[Any, Any]:
    """The modules of a run in one go, in folder/whole, and of one that died in that cycle and went on, in folder/parts.

    Args:
        made: run directory -> a fresh module and its Run.
    """
    whole, run = made(folder / "whole")
    fit(whole, run)
    killed, run = made(folder / "parts")
    with dying(killed, cycle, monkeypatch):
        fit(killed, run)
    resumed, run = made(folder / "parts")
    fit(resumed, run)
    return whole, resumed
