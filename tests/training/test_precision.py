"""bf16-mixed on a CPU has the gradients of attention's plain form; a step waits for the device once per update."""

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adversaries import GAN
from rich.console import Console
from sd3_runs import cached
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from toy_trainings import LINEAR, distillation, network, on_cpu, pieces, place

from fgm.cli.build import build, build_run
from fgm.cli.config import compose_experiment, digest
from fgm.cli.runs import is_done, with_precision, write_yaml
from fgm.networks.dit import Attention
from fgm.training.checkpointing import AtomicCheckpointIO
from fgm.training.distillation import Distillation
from fgm.training.memory_estimate import MemoryTracker, run_two_cycles
from fgm.training.precision import LONGEST, CpuMixedPrecision, plain_attention
from fgm.training.trainer import build_trainer

QUIET = Console(quiet=True)


class Operations(TorchDispatchMode):
    """Names the operations that a call consists of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def uses_plain_attention(tokens: int) -> bool:
    with Operations() as operations:
        Attention(8, 2)(torch.randn(1, tokens, 8))
    return "_softmax" in operations.seen


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_plain_attention_is_used_within_a_step_on_a_cpu_only_over_few_tokens(precision: str, tmp_path: Path) -> None:
    run = place(tmp_path, trainer=on_cpu(precision=precision))
    trainer = build_trainer(run, distillation().config, [], [], AtomicCheckpointIO(QUIET))
    assert trainer.precision == precision
    with trainer.precision_plugin.train_step_context():
        assert torch.is_autocast_enabled("cpu") == (precision == "bf16-mixed")
        assert uses_plain_attention(LONGEST) and not uses_plain_attention(LONGEST + 1)
    with trainer.precision_plugin.forward_context():
        assert not uses_plain_attention(LONGEST)
    assert not uses_plain_attention(LONGEST) and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("native, meaning", [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_is_bf16_where_the_processor_has_its_instructions_and_resume_keeps_it(
    native: bool, meaning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    run = place(tmp_path, trainer=on_cpu(precision="auto"))
    assert build_trainer(run, distillation().config, [], [], AtomicCheckpointIO(QUIET)).precision == meaning
    config = compose_experiment("shapes_fgm", ["trainer.accelerator=cpu", f"run_dir={tmp_path}"])
    began = with_precision(config, tmp_path)
    write_yaml(began, tmp_path / "config.yaml")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not native)
    assert with_precision(config, tmp_path)["resolved"] == began["resolved"] == {"precision": meaning}
    assert build_run(began, QUIET).precision == meaning
    assert digest(began) == digest(config) and not is_done(config, tmp_path)


def test_plain_attention_leaves_a_mask_to_torch() -> None:
    q, k, v = torch.randn(3, 2, 5, 4).unbind(0)
    mask = torch.ones(5, 5).tril().bool()
    assert torch.equal(plain_attention(q, k, v, attn_mask=mask), scaled_dot_product_attention(q, k, v, mask))
    assert torch.equal(plain_attention(q, k, v, is_causal=True), scaled_dot_product_attention(q, k, v, is_causal=True))


def test_plain_attention_is_torchs_to_rounding() -> None:
    q, k, v = torch.randn(3, 2, 5, 4, dtype=torch.float64).unbind(0)
    for scale in (None, 0.3):
        theirs = scaled_dot_product_attention(q, k, v, scale=scale)
        assert torch.allclose(plain_attention(q, k, v, scale=scale), theirs, rtol=1e-13, atol=1e-14)


def gradients(attention: Attention, x: Tensor) -> Tensor:
    attention.zero_grad()
    attention(x).float().square().sum().backward()
    return torch.cat([p.grad.flatten() for p in attention.parameters() if p.grad is not None])


def test_gradients_of_plain_attention_equal_fused_ones_to_bfloat16() -> None:
    """Relative error 2^-8 of a rounded number, and that many independent ones of a sum, leave a few 2^-8."""
    torch.manual_seed(0)
    attention, x = Attention(32, 4), torch.randn(8, 19, 32)
    exact = gradients(attention, x)
    with CpuMixedPrecision().train_step_context():
        plain = gradients(attention, x)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = gradients(attention, x)
    errors = [((g - exact).norm() / exact.norm()).item() for g in (plain, fused)]
    assert 0 < errors[0] <= 4 * 2**-8 and math.isclose(*errors, rel_tol=0.5)


def test_data_are_drawn_in_float32_within_a_bf16_step(tmp_path: Path) -> None:
    """Renders of shapes are matrix products too, which autocast would round."""
    tiny = ["network.width=16", "network.depth=1", "network.heads=1", "training.batch_size=4"]
    module, _ = build(compose_experiment("shapes_teacher", ["data=shapes", *tiny, f"run_dir={tmp_path}"]), QUIET)
    exact = module.draw_data(module.data, module.rng("teacher", 3))
    with CpuMixedPrecision().train_step_context():
        within = module.draw_data(module.data, module.rng("teacher", 3))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(exact, within, strict=True))


# waiting for the device

ATEN = torch.ops.aten
WAITING = (
    ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default, ATEN.unique_consecutive.default,
    ATEN._unique2.default, ATEN.equal.default,
)  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts operations that need a value of the device on the host, except those that read the host's own counts."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module, self.seen = module, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING and not self.is_hosts(args[0]):
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def is_hosts(self, tensor: Tensor) -> bool:
        steps = (state.get("step") for part in self.module.optimizers() for state in part.optimizer.state.values())
        own = [self.module.step, *(step for step in steps if isinstance(step, Tensor))]
        return tensor.data_ptr() in [x.data_ptr() for x in own]


def waits(module: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the second of two steps, by kind."""
    counts: list[Counter[str]] = []
    step = module.training_step

    def watched(batch: Any) -> None:
        with Waits(module) as waiting:
            for name in ("tolist", "numpy", "cpu"):
                plain = getattr(Tensor, name)
                monkeypatch.setattr(
                    Tensor, name, lambda x, *a, n=name, p=plain, **k: (waiting.seen.update([n]), p(x, *a, **k))[1]
                )
            step(batch)
            monkeypatch.undo()
        counts.append(waiting.seen)

    module.training_step = watched
    run_two_cycles(MemoryTracker(), module)
    return counts[-1]


@pytest.mark.parametrize(
    "options, updates",
    [
        ({}, 2),
        ({"online_steps": 3, "low_memory": True}, 4),
        ({"discriminator": partial(GAN, r1_weight=0.5)}, 3),
        ({"adapters": LINEAR}, 2),
    ],
)
def test_step_waits_once_per_update(options: Any, updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Distillation(**pieces(teacher=network(1)), t_star=0.9, **options)
    assert waits(module, monkeypatch) == {"_local_scalar_dense": updates}


def test_sd3_step_also_waits_for_its_prompts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are chosen on the device and read on the host: which ones, and at the end whether they were all."""
    module, _ = build(compose_experiment("sd3_fgm", [*cached(tmp_path), f"run_dir={tmp_path}"]), QUIET)
    assert waits(module, monkeypatch) == {"_local_scalar_dense": 2 + 1, "_unique2": 1, "tolist": 1}
