"""Training on adapters: what moves, what a checkpoint and an export hold, and which settings are rejected."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from toy_trainings import CONFIG, LINEAR, last_weights, pieces, run, weights

from fgm.cli.teacher import from_file
from fgm.evaluation.sources import state_sha256
from fgm.networks.lora import LoRA
from fgm.networks.mlp import VelocityMLP
from fgm.training.checkpointing import export_weights
from fgm.training.distillation import Distillation
from fgm.training.optim import adam, muon


def base() -> VelocityMLP:
    torch.manual_seed(3)
    return VelocityMLP(dim=2, width=16, depth=1)


def distillation(optimizer: Any = None, **options: Any) -> Distillation:
    s = pieces(teacher=base(), optimizer=optimizer or partial(adam, lr=1e-2))
    return Distillation(**s, **{"t_star": 0.9, "adapters": LINEAR} | options)


def test_adapters_that_fit_no_layer_or_no_weights_are_rejected() -> None:
    with pytest.raises(ValueError, match="match no linear layer of VelocityMLP; it has 0, 1, 2"):
        LoRA().networks(VelocityMLP(width=8, depth=1), 0, ("generator",))
    with pytest.raises(ValueError, match="must be teacher"):
        distillation(generator_init="random")
    with pytest.raises(ValueError, match="has no weights to copy"):
        Distillation(**pieces(), t_star=0.9, adapters=LINEAR)


def test_fingerprint_of_a_sampler_covers_the_shared_network() -> None:
    def key(seed: int) -> str:
        torch.manual_seed(seed)
        return state_sha256(LINEAR.networks(VelocityMLP(width=8, depth=1), 0, ("generator",))[0])

    assert key(0) == key(0) != key(1)


@pytest.mark.parametrize("optimizer", [None, partial(muon, lr=1e-2, blocks="adapter")], ids=["adam", "muon"])
def test_every_adapter_moves_and_nothing_else_is_moved_saved_or_exported(optimizer: Any, tmp_path: Path) -> None:
    module = distillation(optimizer)
    before, teacher = weights(module), deepcopy(module.teacher.state_dict())
    after = weights(run(module, tmp_path))
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    assert {name.split(".")[0] for name in after} == {"generator", "online", "ema", "step"}
    assert all(name == "step" or ".lora_" in name for name in after)
    assert all(torch.equal(teacher[name], tensor) for name, tensor in module.teacher.state_dict().items())
    assert all(p.grad is None for p in module.teacher.parameters())
    optimized = [p for o in module.trainer.optimizers for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for net in (module.generator, module.online) for p in net.parameters()}
    layers = [(128, 16), (16, 16), (16, 32), (32, 16)]
    saved = last_weights(tmp_path).values()
    assert sum(tensor.numel() for tensor in saved) == 3 * sum(2 * (i + o) for i, o in layers) + 1
    file = export_weights(module, tmp_path)
    assert set(load_file(file)) == {
        f"{place}.layers.{i}.lora_{m}.weight" for place in ("condition.time", "blocks.0") for i in "02" for m in "AB"
    }
    (fresh,) = LINEAR.networks(base(), 7, ("generator",))
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    assert torch.equal(from_file(str(file), fresh)(x, t), module.ema.net(x, t)), "it loads onto the teacher"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_base_stays_bfloat16_and_its_adapters_train_in_float32(precision: str, tmp_path: Path) -> None:
    module = distillation(adapters=replace(LINEAR, base="bfloat16"))
    run(module, tmp_path, precision)
    assert {p.dtype for p in module.teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32} == {module.weight_dtype}
    assert int(module.step) == CONFIG.max_steps and all(p.isfinite().all() for p in module.parameters())
    assert module.skipped == {"generator": [0, 0], "online": [0, 0]}


def test_copy_of_a_bfloat16_base_computes_with_its_own_weights() -> None:
    net, x, t = VelocityMLP(width=16, depth=1), torch.randn(4, 2), torch.full((4,), 0.5)
    exact = net(x, t)
    replace(LINEAR, base="bfloat16").networks(net, 0, ("generator",))
    copy = deepcopy(net)
    assert_close(copy(x, t).float(), exact, rtol=0.05, atol=0.05)
    with torch.no_grad():
        copy.head[1].weight.zero_()
        copy.head[1].bias.zero_()
    assert copy(x, t).abs().max() == 0 < net(x, t).abs().max()
