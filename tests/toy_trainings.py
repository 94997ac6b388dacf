"""What tests of training share: trainings of points in the plane, small enough to be run twice in a test."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import whole_and_cut
from rich.console import Console
from torch import Tensor

from fgm.data.points import Ring
from fgm.evaluation.evaluator import Evaluator
from fgm.evaluation.point_metrics import PointMetrics
from fgm.flow.analytic import ring
from fgm.flow.paths import RectifiedPath
from fgm.flow.times import LogitNormal
from fgm.networks.analytic import GaussianMixtureVelocity
from fgm.networks.lora import LoRA
from fgm.networks.mlp import VelocityMLP
from fgm.training.distillation import Distillation
from fgm.training.fit import Hardware, Run, fit
from fgm.training.method import Method
from fgm.training.optimizers import adam
from fgm.training.setting import Schedule, Setting

LINEAR = LoRA(rank=2, alpha=4.0, targets=["layers.0", "layers.2"])  # the residual layers of VelocityMLP
SCHEDULE = Schedule(cycles=8, batch_size=16, warmup=2, decay=0.5, clip=1.0, ema_decay=0.9, log_every=4, save_every=5)


def network(seed: int = 0) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=2, width=16, depth=1)


def setting(**changes: Any) -> Setting:
    """Of an exact teacher, unless changed."""
    teacher = GaussianMixtureVelocity(ring(), RectifiedPath())
    net = changes.pop("net", None) or network()
    base = Setting(0, SCHEDULE, lambda: net, RectifiedPath(), LogitNormal(), partial(adam, lr=1e-3), Ring(), teacher)
    return replace(base, **changes)


def distillation(**options: Any) -> Distillation:
    """Of networks that start at random."""
    changes = {name: options.pop(name) for name in ("schedule", "teacher", "optimizer") if name in options}
    starts = {"generator_start": "random", "online_start": "random"}
    return Distillation(setting(**changes), t_star=0.9, **starts | options)


def place(run_dir: Path, console: Console | None = None, hardware: Hardware | None = None, **evaluation: Any) -> Run:
    """On a CPU, without a measurement on the way, unless told otherwise."""
    plan = Evaluator(PointMetrics(Ring()), **{"every": 0, "n_in_training": 64} | evaluation)
    console, hardware = console or Console(file=io.StringIO()), hardware or Hardware("cpu")
    return Run(run_dir, "test", "csv", {"config_digest": "0"}, hardware, plan, console)


def run(module: Method, run_dir: Path, precision: Any = "32-true", **evaluation: Any) -> Method:
    fit(module, place(run_dir, hardware=Hardware("cpu", 1, precision), **evaluation))
    return module


def said(module: Method, run_dir: Path) -> str:
    """What its run prints."""
    printed = io.StringIO()
    fit(module, place(run_dir, Console(file=printed, width=1000)))
    return printed.getvalue()


def weights(module: Method) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts of a module whose weights differ."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def same_bits(a: Method, b: Method) -> bool:
    ours, theirs = weights(a), weights(b)
    return list(ours) == list(theirs) and not moved(ours, theirs)


def whole_and_resumed(
    fresh: Callable[[], Method], folder: Path, monkeypatch: pytest.MonkeyPatch, cycle: int = 6
) -> tuple[Method, Method]:
    return whole_and_cut(lambda run_dir: (fresh(), place(run_dir)), folder, monkeypatch, cycle)
