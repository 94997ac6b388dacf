"""The tiny SD3 under DDP and FSDP2: bfloat16 arithmetic, checkpointing, a half teacher under guidance."""

import io
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from rich.console import Console
from safetensors.torch import load_file
from sd3_runs import cached
from torch import Tensor
from torch.distributed.tensor import DTensor

from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.training.checkpointing import export_weights
from fgm.training.distributed import gathered
from fgm.training.trainer import fit

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
HALF = ["trainer.precision=bf16-mixed", "network.checkpointing=true", "evaluation.every=0", "training.ema_decay=0.5"]
UNREAD = "transformer.transformer_blocks.1.attn.add_q_proj."  # SD3 computes it, and reads no word behind its last block


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*cached(tmp_path_factory.mktemp("sd3")), *HALF]


def states(module: Any) -> dict[str, Tensor]:
    """Of all networks, the teacher too."""
    held = {**module.state_dict(), **{f"teacher.{k}": v for k, v in module.teacher.state_dict().items()}}
    return {name: tensor.clone() for name, tensor in held.items()}


def train(settings: list[str], run_dir: Path) -> None:
    """Two cycles, and what they moved: on the first rank, which knows the whole networks."""
    module, run = build(read_recipe("sd3_fgm", [*settings, f"run_dir={run_dir}"]), Console(file=io.StringIO()))
    before = states(module)
    fit(module, run)
    export_weights(module, run_dir)
    for optimizer in module.trainer.optimizers:
        kept = [value for state in optimizer.state.values() for value in state.values()]
        assert all(value.dtype == torch.float32 for value in kept)
    assert all(isinstance(p, DTensor) == ("fsdp" in run_dir.name) for p in module.teacher.parameters())
    after = gathered(states(module))
    if not module.global_rank:
        compare(before, after, dict(module.named_buffers()).keys())


def compare(before: dict[str, Tensor], after: dict[str, Tensor], buffers: Any) -> None:
    assert before.keys() == after.keys() and all(w.isfinite().all() for w in after.values())
    assert all(after[name].dtype == w.dtype for name, w in before.items())
    moved = {name for name, w in before.items() if not torch.equal(w, after[name])}
    nets = ("generator.", "online.", "ema.")
    frozen = {name for name in before if name in buffers or not name.startswith(nets) or UNREAD in name}
    assert moved - {"cycle"} == before.keys() - frozen - {"cycle"}


@pytest.fixture(scope="module")
def single(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The file of one device."""
    folder = tmp_path_factory.mktemp("single")
    train(settings, folder)
    return load_file(folder / "generator.safetensors")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_is_trained_moves_and_what_is_frozen_rests(
    strategy: str, settings: list[str], single: dict[str, Tensor], tmp_path: Path
) -> None:
    """And the exported generator has the names, shapes and types of a single device's."""
    on_ranks(train, [*settings, f"strategy={strategy}", "trainer.devices=2"], tmp_path / strategy)
    ours = load_file(tmp_path / strategy / "generator.safetensors")
    assert list(ours) == list(single)
    assert all((ours[name].shape, ours[name].dtype) == (w.shape, torch.float32) for name, w in single.items())
