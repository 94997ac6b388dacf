"""make train EXP=sd3_fgm and EXP=sd3_fgm_lora on a tiny random pipeline: the files, what is shared, what is loaded."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sd3_runs import cached
from torch import Tensor
from torch.testing import assert_close

from fgm.cli import train
from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.cli.loading import load_source
from fgm.cli.runs import finished
from fgm.evaluation.sampling import Sampler, draw_samples
from fgm.networks.sd3 import SD3Velocity
from fgm.training.checkpointing import LAST

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of sd3_fgm, for the tiny pipeline, whose prompts are encoded."""
    return cached(tmp_path_factory.mktemp("sd3"))


def test_the_command_leaves_every_promised_file(settings: list[str], tmp_path: Path) -> None:
    train.main(["experiment=sd3_fgm", *settings, f"run_dir={tmp_path}"])
    for name in ("generator.safetensors", "metrics.csv", "samples/000002.png", "samples/final.png"):
        assert (tmp_path / name).stat().st_size > 0, name
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {(row["nfe"], row["weights"]) for row in results} == {(1, "ema"), (1, "raw"), (1, "teacher"), (2, "teacher")}
    assert {row["metric"] for row in results} == {"pixel_mean", "pixel_std", "saturation", "clipped"}
    weights = load_file(tmp_path / "generator.safetensors")
    assert weights and all(name.startswith("transformer.") for name in weights)


def test_teacher_generator_and_online_share_the_encoded_prompts(settings: list[str], tmp_path: Path) -> None:
    module: Any = build(read_recipe("sd3_fgm", [*settings, f"run_dir={tmp_path}"]), Console(quiet=True))[0]
    nets = [module.generator.net, module.online, module.ema.net, module.start[0].net, module.teacher.net]
    assert all(isinstance(net, SD3Velocity) for net in nets)
    assert len({id(net.text) for net in nets}) == 1
    assert len({id(net.transformer) for net in nets}) == 4  # the start is the teacher


def drawn(source: Sampler, shape: tuple[int, ...]) -> Tensor:
    return draw_samples(source, 1, 3, shape, lambda indices: 1 + indices, torch.device("cpu"))[0]


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_adapters_train_and_load_under_names_that_diffusers_reads(
    base: str, settings: list[str], tmp_path: Path
) -> None:
    tiny = ["method.adapters.rank=2", f"method.adapters.base={base}", "method.steps=2", "network.checkpointing=true"]
    run = ["experiment=sd3_fgm_lora", *settings, *tiny, f"run_dir={tmp_path}"]
    train.main(run)
    names = load_file(tmp_path / "generator.safetensors").keys()
    assert len(names) == 2 * 15
    assert all(name.startswith("transformer.transformer_blocks.") and ".lora_" in name for name in names)
    config = finished(read_recipe("sd3_fgm_lora", run[1:]))
    module, _ = build(read_recipe("sd3_fgm_lora", run[1:]), Console(quiet=True))
    module.load_state_dict(torch.load(tmp_path / LAST, weights_only=True)["state_dict"])
    ema, _, start, _ = (drawn(source, module.setting.data.shape) for source in module.sources())
    assert_close(drawn(load_source(config), module.setting.data.shape), ema, rtol=0, atol=1e-6)
    assert (ema - start).abs().max() > 1e-4
