"""What tests of training share: trainings of points in the plane, small enough to be run twice in a test."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
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
from fgm.training.checkpointing import LAST
from fgm.training.config import TrainingConfig
from fgm.training.distillation import Distillation
from fgm.training.flow_matching import FlowMatching
from fgm.training.module import TrainingModule
from fgm.training.optim import adam
from fgm.training.trainer import Run, fit

LINEAR = LoRA(rank=2, alpha=4.0, targets=["layers.0", "layers.2"])  # the residual layers of VelocityMLP
CONFIG = TrainingConfig(
    max_steps=8, batch_size=16, warmup_steps=2, lr_decay_fraction=0.5, gradient_clip_val=1.0, ema_half_life=0.5,
    log_every_n_steps=4, save_every_n_steps=5,
)  # fmt: skip


def network(seed: int = 0) -> VelocityMLP:
    torch.manual_seed(seed)
    return VelocityMLP(dim=2, width=16, depth=1)


def pieces(**changes: Any) -> dict[str, Any]:
    """The arguments that every training takes; the teacher is an exact mixture."""
    return {
        "seed": 0, "config": CONFIG, "network": network, "path": RectifiedPath(), "times": LogitNormal(),
        "optimizer": partial(adam, lr=1e-3), "data": Ring(), "teacher": GaussianMixtureVelocity(ring(), RectifiedPath()),
    } | changes  # fmt: skip


def distillation(**options: Any) -> Distillation:
    """A distillation whose networks start at random."""
    return Distillation(**pieces() | {"t_star": 0.9, "generator_init": "random", "online_init": "random"} | options)


def teacher_training(**options: Any) -> FlowMatching:
    return FlowMatching(**pieces(teacher=None) | options)


def on_cpu(**arguments: Any) -> Any:
    """Lightning's Trainer on the CPU, as configs/trainer gives it."""
    return partial(Trainer, **{"accelerator": "cpu", "devices": 1, "precision": "32-true"} | arguments)


def place(run_dir: Path, console: Console | None = None, trainer: Any = None, **evaluation: Any) -> Run:
    """On a CPU, without a measurement during training unless `every` is given."""
    plan = Evaluator(PointMetrics(Ring()), **{"every": 0, "n_in_training": 64} | evaluation)
    console, trainer = console or Console(file=io.StringIO()), trainer or on_cpu()
    return Run(run_dir, "test", {"config_digest": "0"}, plan, console, trainer)


def run(module: TrainingModule, run_dir: Path, precision: Any = "32-true", **evaluation: Any) -> TrainingModule:
    fit(module, place(run_dir, trainer=on_cpu(precision=precision), **evaluation))
    return module


def console_output(module: TrainingModule, run_dir: Path) -> str:
    printed = io.StringIO()
    fit(module, place(run_dir, Console(file=printed, width=1000)))
    return printed.getvalue()


def weights(module: TrainingModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts of a module whose weights differ."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def same_bits(a: TrainingModule, b: TrainingModule) -> bool:
    ours, theirs = weights(a), weights(b)
    return list(ours) == list(theirs) and not moved(ours, theirs)


def last_state(run_dir: Path) -> dict[str, Any]:
    """The last checkpoint, loaded without executing anything."""
    return torch.load(run_dir / LAST, weights_only=True)


def last_weights(run_dir: Path) -> dict[str, Tensor]:
    return last_state(run_dir)["state_dict"]


def last_step(run_dir: Path) -> int:
    return int(last_weights(run_dir)["step"])


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """All leaves of a checkpoint, by their place."""
    if isinstance(node, dict | list | tuple):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, value in items for k, v in flat(value, f"{prefix}/{key}").items()}
    return {prefix: node}


@contextmanager
def dying(module: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of this module, which dies in the middle of a step."""
    training_step = module.training_step

    def dies(batch: Any) -> None:
        if int(module.step) == step:
            raise RuntimeError("killed")
        training_step(batch)

    monkeypatch.setattr(module, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        yield


def whole_and_cut(
    make: Callable[[Path], tuple[Any, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> tuple[Any, Any]:
    """The modules of a run in one go, in folder/whole, and of one that died in that step and resumed, in folder/parts.

    Args:
        make: run directory -> a fresh module and its Run.
    """
    whole, run = make(folder / "whole")
    fit(whole, run)
    killed, run = make(folder / "parts")
    with dying(killed, step, monkeypatch):
        fit(killed, run)
    resumed, run = make(folder / "parts")
    fit(resumed, run)
    return whole, resumed


def whole_and_resumed(
    fresh: Callable[[], TrainingModule], folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 6
) -> tuple[TrainingModule, TrainingModule]:
    return whole_and_cut(lambda run_dir: (fresh(), place(run_dir)), folder, monkeypatch, step)
