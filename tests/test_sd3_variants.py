"""Stable Diffusion 3 with adapters, two steps and guidance in both networks, by name, on a tiny random pipeline."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_sd3_training import settings  # noqa: F401
from torch import Tensor
from torch.testing import assert_close

from fgm import train
from fgm.build import build
from fgm.config import read_recipe
from fgm.evaluation.sampling import Source, draw_samples
from fgm.finished import finished_run, load_source
from fgm.training.checkpoints import LAST


def drawn(source: Source, shape: tuple[int, ...]) -> Tensor:
    return draw_samples(source, 1, 3, shape, 0, torch.device("cpu"), conditions=lambda indices: 1 + indices)[0]


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_adapters_train_and_load_under_names_that_diffusers_reads(
    base: str,
    settings: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    tiny = ["method.adapters.rank=2", f"method.adapters.base={base}", "method.steps=2", "network.checkpointing=true"]
    run = ["experiment=sd3_fgm_lora", *settings, *tiny, f"run_dir={tmp_path}"]
    train.main(run)
    names = load_file(tmp_path / "generator.safetensors").keys()
    assert len(names) == 2 * 15
    assert all(name.startswith("transformer.transformer_blocks.") and ".lora_" in name for name in names)
    config, _ = finished_run(run, {})
    module, _ = build(read_recipe("sd3_fgm_lora", run[1:]), Console(quiet=True))
    module.load_state_dict(torch.load(tmp_path / LAST, weights_only=True)["state_dict"])
    ema, _, start, _ = (drawn(source, module.setting.data.shape) for source in module.sources())
    assert_close(drawn(load_source(config), module.setting.data.shape), ema, rtol=0, atol=1e-6)
    assert (ema - start).abs().max() > 1e-4
