"""What a distillation holds: a teacher in bfloat16 that changes no bit, no network that nobody asked for, no copy."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sd3_runs import LORA, cached
from torch import Tensor, nn

from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.networks import VelocityModel, sd3
from fgm.networks.guidance import unwrap_guidance
from fgm.networks.mixed_precision import use_bfloat16
from fgm.networks.sd3 import TRAINING_BYTES
from fgm.training.trainer import fit
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
MIXED = ["trainer.precision=bf16-mixed", "evaluation.every=0"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return cached(tmp_path_factory.mktemp("memory"))


def built(settings: list[str], run_dir: Path, *overrides: str) -> tuple[Any, Any]:
    return build(read_recipe("sd3_fgm", [*settings, *overrides, f"run_dir={run_dir}"]), Console(quiet=True))


def called(net: VelocityModel) -> tuple[Tensor, Tensor]:
    """The velocity, and the gradient of its square's sum with respect to x_t."""
    noise = torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 4, 4, 4, generator=noise).requires_grad_()
    v = net(x_t, torch.tensor([0.1, 0.5, 0.97]), torch.tensor([0, 1, 2]))
    return v, torch.autograd.grad(v.square().sum(), x_t)[0]


@pytest.mark.parametrize("within", [True, False], ids=["in mixed precision", "outside"])
def test_a_halved_network_is_autocast_bit_for_bit(within: bool, settings: list[str], tmp_path: Path) -> None:
    module, _ = built(settings, tmp_path, "method.teacher_dtype=float32")
    whole = unwrap_guidance(module.teacher).requires_grad_(False)
    half = use_bfloat16(deepcopy(whole))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = called(whole)
    with torch.autocast("cpu", torch.bfloat16, enabled=within, cache_enabled=False):
        found = called(half)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, expected, strict=True))
    assert not torch.equal(expected[0], called(whole)[0])


def test_a_run_with_a_halved_teacher_is_the_run_without(settings: list[str], tmp_path: Path) -> None:
    states = []
    for name in ("true", "false"):
        module, run = built(settings, tmp_path / name, *MIXED, f"method.teacher_dtype={name}")
        fit(module, run)
        states.append(module.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_bytes_that_a_refusal_tells_are_those_that_a_run_holds(settings: list[str], tmp_path: Path) -> None:
    """Of parameters, Adam's moments and one gradient; a cycle's activations and tables of positions not counted."""
    module, run = built(settings, tmp_path, *MIXED)
    fit(module, run)
    nets: list[nn.Module] = [module, module.teacher, module.start[0]]
    held = {p.data_ptr(): p.numel() * p.element_size() for net in nets for p in net.parameters()}
    states = [state for o in module.trainer.optimizers for state in o.state.values()]
    moments = [m.numel() * m.element_size() for state in states for name, m in state.items() if name != "step"]
    count = sum(p.numel() for p in module.online.parameters())
    assert sum(held.values()) + sum(moments) + 4 * count == TRAINING_BYTES * count


def test_weights_are_read_once_where_all_networks_start_from_the_teacher(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, load = [], sd3.load_part
    monkeypatch.setattr(sd3, "load_part", lambda *given: reads.append(given) or load(*given))
    built(settings, tmp_path / "teacher")
    assert len(reads) == 1
    module, _ = built(settings, tmp_path / "random", "method.online_init=random")
    assert len(reads) == 3 and module.setting.net is module.setting.net


@pytest.mark.parametrize(
    "overrides, message",
    [(["trainer.precision=64-true"], "bfloat16 beside float64"), (LORA, "adapters.base is the dtype")],
)
def test_halves_that_fit_nothing_are_refused(
    overrides: list[str], message: str, settings: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(*built(settings, tmp_path, *overrides))
