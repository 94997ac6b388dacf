"""What is to be trained and does not move is named: after the first update, or after ten where others did move."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_trainings import LINEAR, SCHEDULE, network, said, setting

from fgm.networks.lora import SharedBase
from fgm.training.callbacks import CHECKED, sums
from fgm.training.discriminator import Adversary
from fgm.training.distillation import Distillation
from fgm.training.optim import adam

LONG = replace(SCHEDULE, cycles=CHECKED + 2)


def warnings(run_dir: Path, lr: float = 1e-3, optimizer: Any = None, **options: Any) -> list[str]:
    """The warnings of a run, on adapters unless told otherwise."""
    teacher = network(3)
    for p in teacher.parameters():
        p.data += 0.1 * torch.randn_like(p)  # its head starts at zero
    given = setting(teacher=teacher, schedule=LONG, optimizer=optimizer or partial(adam, lr=lr))
    module = Distillation(given, t_star=0.9, **{"adapters": LINEAR} | options)
    return [line for line in said(module, run_dir).splitlines() if "moves" in line or "moved" in line]


def test_nothing_is_said_where_all_moves_if_not_at_once(tmp_path: Path) -> None:
    """A of an adapter rests in the first update, since B starts at zero; a discriminator that has not begun rests."""
    adversary = partial(Adversary, blocks=["blocks.0"], from_cycle=5)
    assert warnings(tmp_path, adversary=adversary) == []


def test_networks_whose_steps_are_too_small_are_named_after_the_first_update(tmp_path: Path) -> None:
    lines = warnings(tmp_path, lr=1e-12, adapters=None)
    many = len(list(network().parameters()))
    for line, name in zip(lines, ("generator", "online network"), strict=True):
        told = f"{many} of {many} trainable tensors of the {name} have not moved in 1 update: "
        assert line.startswith(f"warning at cycle 1: {told}{name.split()[0]}.") and line.endswith(f"{many - 3} more")


def test_a_layer_whose_adapter_gets_no_gradient_is_named_after_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = SharedBase.add_adapter

    def cut(self: SharedBase, name: str, *call: Any) -> Any:
        output = adapted(self, name, *call)
        return call[-1] if name == "blocks.0.layers.2" else output

    monkeypatch.setattr(SharedBase, "add_adapter", cut)
    names = "blocks.0.layers.2.lora_A.weight, generator.net.adapter.blocks.0.layers.2.lora_B.weight"
    assert warnings(tmp_path)[0] == (
        f"warning at cycle {CHECKED}: 2 of 8 trainable tensors of the generator have not moved in {CHECKED} updates: "
        f"generator.net.adapter.{names}"
    )


def test_an_optimizer_of_other_weights_is_found_before_the_first_cycle(tmp_path: Path) -> None:
    def of_others(net: nn.Module) -> torch.optim.Optimizer:
        return adam(nn.Linear(2, 2), lr=1e-3)

    (line,) = warnings(tmp_path, optimizer=of_others)
    assert line.startswith("warning at cycle 0: no optimizer moves online.adapter.") and line.endswith(" and 13 more")


def test_a_sum_sees_one_bit_in_any_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.ones(5, dtype=dtype)
        y = x.clone()
        y.view(torch.uint8)[0] ^= 1
        assert sums([x]) != sums([y]) and sums([x, y]) == [*sums([x]), *sums([y])]
