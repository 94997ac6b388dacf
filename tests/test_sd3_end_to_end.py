"""sd3_fgm from prompts to a pipeline, whole and as adapters, with a discriminator and without, on a tiny random one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from sd3_runs import PROMPTS, cached
from torch import Tensor

from fgm.cli import export, sample, train
from fgm.cli.build import build
from fgm.cli.config import read_recipe
from fgm.data.pixels import decode_png
from fgm.training.checkpointing import LAST
from fgm.training.trainer import fit

os.environ["HF_HUB_OFFLINE"] = "1"
SIZES = {
    "whole": [],
    "adapters": [
        "method.adapters={_target_: fgm.networks.lora.LoRA, rank: 2, alpha: 2}", "method.teacher_dtype=float32",
    ],
}  # fmt: skip
LAST_WORDS = "transformer.transformer_blocks.1.attn.add_q_proj."  # SD3 reads no word behind its last block


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With latents of real images, which a discriminator sees."""
    root = tmp_path_factory.mktemp("whole way")
    noise = torch.Generator().manual_seed(0)
    save_file({"latents": torch.randn(8, 4, 4, 4, generator=noise)}, root / "latents.safetensors")
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> list[str]:
    return [*cached(root), "network.checkpointing=true", "training.max_steps=3", "training.ema_decay=0.5"]


@pytest.fixture(params=["no GAN", "GAN"], scope="module")
def real(request: pytest.FixtureRequest, root: Path) -> list[str]:
    """A discriminator from the second cycle on, or none."""
    if request.param == "no GAN":
        return []
    data = f"{{_target_: fgm.data.latents.Latents, path: '{root / 'latents.safetensors'}'}}"
    return [
        "method=fgm_gan", "method.discriminator.blocks=[transformer_blocks.0, transformer_blocks.1]",
        f"method.discriminator.data={data}", "method.discriminator.start_step=1", "method.discriminator.weight=0.5",
    ]  # fmt: skip


@pytest.fixture(params=SIZES, scope="module")
def run(request: pytest.FixtureRequest, real: list[str], settings: list[str]) -> list[str]:
    return ["experiment=sd3_fgm", *real, *settings, *SIZES[request.param]]


def state(module: Any) -> dict[str, Tensor]:
    nets = {"teacher": module.teacher, "start": module.start[0], "": module}
    if hasattr(module.online, "shared"):
        nets["shared"] = module.online.shared.net
    return {f"{at}:{name}": w.clone() for at, net in nets.items() for name, w in net.state_dict().items()}


def stopped(run: list[str], at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """make train, killed in the middle of a cycle."""
    from fgm.training.distillation import Distillation

    step = Distillation.generator_turn

    def dies(module: Any, *given: Any) -> Any:
        if int(module.cycle) == at:
            raise RuntimeError("killed")
        return step(module, *given)

    monkeypatch.setattr(Distillation, "generator_turn", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train.main(run)
    monkeypatch.undo()


def test_from_prompts_to_a_pipeline(run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off and gone on, every bit is that of a run that was not; all that trains has moved, and nothing else."""
    parts = [*run, f"run_dir={tmp_path / 'parts'}"]
    module, fitting = build(read_recipe("sd3_fgm", [*run[1:], f"run_dir={tmp_path / 'whole'}"]), Console(quiet=True))
    before = state(module)
    fit(module, fitting)
    after = state(module)
    require_moved(module, before, after)
    stopped(parts, 2, monkeypatch)
    train.main(parts)
    resumed = torch.load(tmp_path / "parts" / LAST, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in module.state_dict().items())
    exported = load_file(tmp_path / "parts" / "generator.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in module.result().state_dict().items())
    require_drawn(parts, tmp_path)


def require_moved(module: Any, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    trainable = {f":{name}" for name, weight in module.named_parameters() if weight.requires_grad}
    assert {name.split(".")[0] for name in trainable} - {":adversary"} == {":generator", ":online"}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert trainable - moved == {name for name in trainable if LAST_WORDS in name}
    averaged = {name for name in moved if name.startswith(":ema.")}
    assert moved - trainable - averaged == {":cycle"}
    assert {name.replace(":ema.", ":generator.", 1) for name in averaged} == moved & {
        name for name in trainable if name.startswith(":generator.")
    }


def require_drawn(run: list[str], tmp_path: Path) -> None:
    """Pictures of a prompt, a GenEval folder, a pipeline."""
    sample.main([*run, f"prompt={PROMPTS[2]}", "n=2", f"out={tmp_path / 'two.png'}"])
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    line = '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}\n'
    (tmp_path / "metadata.jsonl").write_text(line)
    asked = ["format=geneval", f"metadata={tmp_path / 'metadata.jsonl'}", "samples=2"]
    export.main([*run, *asked, f"out={tmp_path / 'geneval'}"])
    pictures = sorted((tmp_path / "geneval" / "00000" / "samples").iterdir())
    assert [decode_png(picture.read_bytes(), picture).shape for picture in pictures] == [(3, 32, 32)] * 2
    export.main([*run, "format=diffusers", f"out={tmp_path / 'pipeline'}"])
    assert (tmp_path / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size > 0
