"""How often a cycle makes the host wait for the device: once an update, whose gradient must be known to be finite."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN
from sd3_runs import cached
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_trainings import network, setting

from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.networks.lora import LoRA
from fgm.training.distillation import Distillation
from fgm.training.memory_estimate import MemoryTracker, run_two_cycles

ATEN = torch.ops.aten
WAITING = (
    ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default, ATEN.unique_consecutive.default,
    ATEN._unique2.default, ATEN.equal.default,
)  # fmt: skip


class Waits(TorchDispatchMode):
    """Operations that need a value of the device's on the host, but for those that read the host's own counts."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.seen = module, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING and not self.is_hosts(args[0]):
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def is_hosts(self, tensor: Tensor) -> bool:
        steps = (state.get("step") for part in self.module.optimizers() for state in part.optimizer.state.values())
        own = [self.module.cycle, *(step for step in steps if isinstance(step, Tensor))]
        return tensor.data_ptr() in [x.data_ptr() for x in own]


def waits(module: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the second of two cycles, by kind."""
    found: list[Counter[str]] = []
    step = module.training_step

    def watched(batch: Any) -> None:
        with Waits(module) as seen:
            for name in ("tolist", "numpy", "cpu"):
                plain = getattr(Tensor, name)
                monkeypatch.setattr(
                    Tensor, name, lambda x, *a, n=name, p=plain, **k: (seen.seen.update([n]), p(x, *a, **k))[1]
                )
            step(batch)
            monkeypatch.undo()
        found.append(seen.seen)

    module.training_step = watched
    run_two_cycles(MemoryTracker(), module)
    return found[-1]


@pytest.mark.parametrize(
    "options, updates",
    [
        ({}, 2),
        ({"online_turns": 3, "two_stage": True}, 4),
        ({"adversary": partial(GAN, r1_weight=0.5)}, 3),
        ({"adapters": LoRA(rank=2, alpha=4.0, targets=["layers.0"])}, 2),
    ],
)
def test_a_cycle_waits_once_an_update(options: Any, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Distillation(setting(net=network(2), teacher=network(1)), t_star=0.9, **options)
    assert waits(module, monkeypatch) == {"_local_scalar_dense": updates}


def test_stable_diffusion_waits_besides_for_its_prompts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are chosen on the device and read on the host: which ones, and at the end whether they were all."""
    from rich.console import Console

    module, _ = build(read_recipe("sd3_fgm", [*cached(tmp_path), f"run_dir={tmp_path}"]), Console(quiet=True))
    assert waits(module, monkeypatch) == {"_local_scalar_dense": 2 + 1, "_unique2": 1, "tolist": 1}
