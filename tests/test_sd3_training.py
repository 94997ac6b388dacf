"""make cache-prompts and make train EXP=sd3_fgm, whole, on a tiny random pipeline and without a download."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import dying
from rich.console import Console
from safetensors.torch import load_file
from sd3_runs import PROMPTS, cached
from tiny_sd3 import SIZE
from torch import Tensor

from fgm import export, sample, train
from fgm.build import build
from fgm.config import read_recipe
from fgm.errors import Refusal
from fgm.networks.sd3 import SD3Velocity
from fgm.pixels.png import decode
from fgm.training.fit import fit
from fgm.training.method import Method

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of sd3_fgm, for the tiny pipeline, whose prompts are encoded."""
    return cached(tmp_path_factory.mktemp("sd3"))


def built(settings: list[str], run_dir: Path) -> tuple[Any, Any]:
    return build(read_recipe("sd3_fgm", [*settings, f"run_dir={run_dir}"]), Console(file=io.StringIO()))


def state(module: Method) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    run_dir = tmp_path_factory.mktemp("run")
    run = ["experiment=sd3_fgm", *settings, f"run_dir={run_dir}"]
    train.main(run)
    return run, run_dir


def test_the_command_leaves_every_promised_file(finished: tuple[list[str], Path]) -> None:
    _, run_dir = finished
    for name in ("generator.safetensors", "metrics.csv", "samples/000002.png", "samples/final.png"):
        assert (run_dir / name).stat().st_size > 0, name
    results = json.loads((run_dir / "results.json").read_text())["results"]
    assert {(row["nfe"], row["weights"]) for row in results} == {(1, "ema"), (1, "raw"), (1, "teacher"), (2, "teacher")}
    assert {row["metric"] for row in results} == {"pixel_mean", "pixel_std", "saturation", "clipped"}
    weights = load_file(run_dir / "generator.safetensors")
    assert weights and all(name.startswith("transformer.") for name in weights)


def test_a_finished_run_draws_and_fills_a_geneval_folder(
    finished: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    sample.main([*run, "n=4", f"out={tmp_path / 'four.png'}"])
    sample.main([*run, "prompt=two dogs", "n=3", f"out={tmp_path / 'dogs.png'}"])
    assert all((tmp_path / name).stat().st_size > 0 for name in ("four.png", "dogs.png"))
    with pytest.raises(Refusal, match="'two cats' is not in"):
        sample.main([*run, "prompt=two cats"])
    lines = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    geneval = [*run, "format=geneval", f"metadata={tmp_path / 'metadata.jsonl'}", "samples=2"]
    export.main([*geneval, f"out={tmp_path / 'geneval'}"])
    pictures = sorted((tmp_path / "geneval" / "00000" / "samples").iterdir())
    assert [decode(picture.read_bytes(), picture).shape for picture in pictures] == [(3, SIZE, SIZE)] * 2
    lines[0]["prompt"] = "a photo of a bench with no cache"
    (tmp_path / "metadata.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(Refusal, match="'a photo of a bench with no cache' is not in"):
        export.main([*geneval, f"out={tmp_path / 'other'}"])


def test_every_trainable_tensor_moves_and_no_frozen_one_does(settings: list[str], tmp_path: Path) -> None:
    """But for the last block's queries of words: SD3 computes them, and reads no word behind that block."""
    module, run = built(settings, tmp_path)
    before, teacher = state(module), {k: v.clone() for k, v in module.teacher.state_dict().items()}
    start = {k: v.clone() for k, v in module.start[0].state_dict().items()}
    fit(module, run)
    after = state(module)
    trainable = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"generator", "online"}
    assert {name for name in trainable if torch.equal(before[name], after[name])} == {
        f"{net}.transformer.transformer_blocks.1.attn.add_q_proj.{kind}"
        for net in ("generator.net", "online")
        for kind in ("weight", "bias")
    }
    buffers = {name for name, _ in module.named_buffers()} - {"cycle"}
    assert buffers and all(torch.equal(before[name], after[name]) for name in buffers)
    assert all(torch.equal(v, teacher[k]) for k, v in module.teacher.state_dict().items())
    assert all(torch.equal(v, start[k]) for k, v in module.start[0].state_dict().items())
    ema = {name for name in before if name.startswith("ema.")} - buffers
    assert all(torch.equal(after[name], after[name.replace("ema.", "generator.", 1)]) for name in ema)


def test_a_resumed_run_is_bit_equal(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*settings, "training.ema_decay=0.5", "evaluation.every=0"]
    whole, run = built(settings, tmp_path / "whole")
    fit(whole, run)
    killed, run = built(settings, tmp_path / "parts")
    with dying(killed, 1, monkeypatch):
        fit(killed, run)
    resumed, run = built(settings, tmp_path / "parts")
    fit(resumed, run)
    assert int(resumed.cycle) == 2
    assert all(torch.equal(tensor, state(resumed)[name]) for name, tensor in state(whole).items())


def test_teacher_generator_and_online_share_the_encoded_prompts(settings: list[str], tmp_path: Path) -> None:
    module, _ = built(settings, tmp_path)
    nets = [module.generator.net, module.online, module.ema.net, module.start[0].net, module.teacher.net]
    assert all(isinstance(net, SD3Velocity) for net in nets)
    assert len({id(net.text) for net in nets}) == 1
    assert len({id(net.transformer) for net in nets}) == 4  # the start is the teacher


def test_the_conditions_of_a_cycle_are_prompts(settings: list[str], tmp_path: Path) -> None:
    module, _ = built(settings, tmp_path)
    noise = torch.Generator().manual_seed(0)
    drawn = module.setting.data.conditions(200, noise)
    assert set(drawn.tolist()) == set(range(1, 1 + len(PROMPTS)))
