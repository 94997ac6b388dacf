"""bf16-mixed on a CPU: the same gradients with attention's plain form, which is for training steps alone."""

import math
from pathlib import Path

import torch
from rich.console import Console
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.cli.synthetic import untrained
from fgm.networks.dit import Attention
from fgm.training.checkpointing import AtomicCheckpointIO
from fgm.training.trainer import CpuMixedPrecision, build_trainer


def test_a_step_on_a_cpu_takes_the_plain_form_and_nothing_after_it(tmp_path: Path) -> None:
    console = Console(quiet=True)
    for precision, plain in (("bf16-mixed", True), ("32-true", False)):
        config = read_recipe(
            "digits_fgm", [f"trainer.precision={precision}", "trainer.accelerator=cpu", f"run_dir={tmp_path}"]
        )
        module, run = build(untrained(config), console)
        trainer = build_trainer(run, module.schedule, [], [], AtomicCheckpointIO(console))
        assert trainer.precision == precision
        with trainer.precision_plugin.train_step_context():
            assert torch.is_autocast_enabled("cpu") == plain and flash_sdp_enabled() != plain
        with trainer.precision_plugin.forward_context():
            assert flash_sdp_enabled()
        assert flash_sdp_enabled() and not torch.is_autocast_enabled("cpu")


def gradients(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    attention.zero_grad()
    attention(x).float().square().sum().backward()
    return torch.cat([p.grad.flatten() for p in attention.parameters() if p.grad is not None])


def test_the_plain_form_s_gradients_are_attention_s_to_bfloat16() -> None:
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


def test_pictures_and_captions_are_drawn_in_float32_within_a_step(tmp_path: Path) -> None:
    """Renders of shapes are products of matrices too, which autocast would round, or end in an error of dtypes."""
    tiny = ["network.width=16", "network.depth=1", "network.heads=1", "training.batch_size=4"]
    small = ["data=shapes", *tiny, f"run_dir={tmp_path}"]
    module, _ = build(read_recipe("shapes_teacher", small), Console(quiet=True))
    exact = module.drawn(3)
    with CpuMixedPrecision().train_step_context():
        within = module.drawn(3)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(exact, within, strict=True))
