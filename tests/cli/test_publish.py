"""An exported pipeline: stock diffusers, called as its card says, gives the generator's own images."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sd3_runs import LORA, PROMPTS, cached, finished
from tiny_runs import finished as finished_digits
from torch import Tensor
from torch.testing import assert_close

from fgm.cli import export
from fgm.cli.config import compose_experiment
from fgm.cli.loading import load_source
from fgm.cli.runs import finished as finished_config
from fgm.utils.errors import UserError
from fgm.utils.pretrained import fingerprint

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def settings(root: Path) -> list[str]:
    return cached(root)


def run_of(settings: list[str], *overrides: str) -> list[str]:
    given = [*settings, *overrides]
    made = (Path(compose_experiment("sd3_fgm", given)["run_dir"]) / "results.json").exists()
    return ["experiment=sd3_fgm", *given] if made else finished(given)


def ours(run: list[str], z: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents and images in [0, 1] of all prompts."""
    from hydra.utils import instantiate

    config = finished_config(compose_experiment("sd3_fgm", run[1:]))
    data, generator = instantiate(config["data"]), load_source(config).model
    with torch.no_grad():
        x_0 = generator(z, data.encode(PROMPTS), eps) if eps is not None else generator(z, data.encode(PROMPTS))
    return x_0, (data.to_images(x_0) / 2 + 0.5).clamp(0, 1)


def run_card(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the card's code and return its variables: pipeline, z, call, image."""
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    monkeypatch.chdir(out)
    variables: dict[str, Any] = {}
    exec(code, variables)
    variables["pipeline"].set_progress_bar_config(disable=True)
    return variables


def images_of(variables: dict[str, Any], latents: Tensor, output_type: str) -> Tensor:
    return variables["pipeline"](PROMPTS, latents=latents, output_type=output_type, **variables["call"]).images


def noise(n: int = len(PROMPTS)) -> Tensor:
    return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "overrides, c_in",
    [([], 0.97), (["method.c_in=one", "method.t_star=0.6"], 1.0), (LORA, 0.97)],
    ids=["whole", "other t*", "adapters"],
)
def test_stock_diffusers_gives_the_generators_images(
    overrides: list[str], c_in: float, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = run_of(settings, *overrides), tmp_path / "pipeline"
    export.main([*run, "format=diffusers", f"out={out}"])
    card = run_card(out, monkeypatch)
    assert card["image"].size == (32, 32) and card["call"]["num_inference_steps"] == 1
    z = noise()
    latents, images = ours(run, z)
    assert_close(images_of(card, c_in * z, "latent"), latents, rtol=0, atol=1e-5)
    assert_close(images_of(card, c_in * z, "pt"), images, rtol=0, atol=1e-5)
    assert latents.std() > 0.1 and images.std() > 0.01


def test_several_steps_are_the_schedulers_stochastic_steps(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out, z = run_of(settings, "method.steps=2"), tmp_path / "pipeline", noise()
    export.main([*run, "format=diffusers", f"out={out}"])
    card = run_card(out, monkeypatch)
    assert card["call"]["sigmas"] == [0.97, 0.485]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = images_of(card, 0.97 * z, "latent")
        torch.manual_seed(3)
        eps = torch.randn_like(z)
    assert_close(found, ours(run, z, eps[:, None])[0], rtol=0, atol=1e-5)


def test_kept_adapter_added_to_the_teacher_gives_the_merged_weights(
    settings: list[str], root: Path, tmp_path: Path
) -> None:
    """Readers assume alpha = rank, so B contains the run's scale."""
    from diffusers import StableDiffusion3Pipeline
    from safetensors.torch import load_file

    run, kept, merged = run_of(settings, *LORA), tmp_path / "kept", tmp_path / "merged"
    export.main([*run, "format=diffusers", "lora=keep", f"out={kept}"])
    export.main([*run, "format=diffusers", f"out={merged}"])
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (kept / weights).read_bytes() == (root / "model" / weights).read_bytes()
    read: Any = StableDiffusion3Pipeline.lora_state_dict(str(kept), local_files_only=True)
    adapter = {name.removeprefix("transformer."): w for name, w in read.items() if name.startswith("transformer.")}
    base, expected = load_file(kept / weights), load_file(merged / weights)
    layers = {name.removesuffix(".lora_A.weight") for name in adapter if name.endswith(".lora_A.weight")}
    assert len(layers) == 15 and len(adapter) == len(read) == 30
    for name in layers:
        base[f"{name}.weight"] += adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
        assert not torch.equal(base[f"{name}.weight"], load_file(kept / weights)[f"{name}.weight"])
    assert base.keys() == expected.keys()
    for name, weight in base.items():
        assert_close(weight, expected[name], rtol=0, atol=1e-6)
    assert 'load_lora_weights(".")' in (kept / "README.md").read_text()


def test_linked_pipeline_in_bfloat16_has_the_teachers_files_and_its_own_transformer(
    settings: list[str], root: Path, tmp_path: Path
) -> None:
    run, out = run_of(settings), tmp_path / "pipeline"
    export.main([*run, "format=diffusers", "dtype=bfloat16", "link=true", f"out={out}"])
    for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        (file,) = (out / part).glob("*.safetensors")
        assert file.is_symlink() and fingerprint([file]) == fingerprint([root / "model" / part / file.name])
    (own,) = (out / "transformer").glob("*.safetensors")
    assert not own.is_symlink()
    from safetensors.torch import load_file

    assert {weight.dtype for weight in load_file(own).values()} == {torch.bfloat16}


def test_card_has_measurements_with_protocol_and_the_teachers_licence(
    settings: list[str], root: Path, tmp_path: Path
) -> None:
    run, model = run_of(settings), root / "model"
    export.main([*run, "format=diffusers", f"out={tmp_path / 'bare'}"])
    assert "See model:" in (tmp_path / "bare" / "README.md").read_text()
    try:
        (model / "LICENSE.md").write_text("the licence")
        (model / "README.md").write_text("---\nlicense: other\nlicense_name: some-community\nx: 1\n---\n# A teacher\n")
        (model / "run_me.py").write_text("raise SystemExit")
        export.main([*run, "format=diffusers", f"out={tmp_path / 'full'}"])
    finally:
        for name in ("LICENSE.md", "README.md", "run_me.py"):
            (model / name).unlink()
    text = (tmp_path / "full" / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == {
        "library_name": "diffusers", "pipeline_tag": "text-to-image", "license": "other",
        "license_name": "some-community",
    }  # fmt: skip
    assert "license: other, license_name: some-community" in text and str(root) not in text
    assert "| one step, ema | saturation | 0.25 | 5 | uint8, mean over images; prompts abc |" in text
    assert "t* = 0.97" in text and "images_seen: 7" in text and "guidance 4.5" in text
    assert (tmp_path / "full" / "LICENSE.md").read_text() == "the licence"
    assert not [file for file in (tmp_path / "full").rglob("*") if file.suffix in (".py", ".bin", ".pt")]


def test_failed_export_leaves_nothing(
    settings: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = finished_digits(tmp_path / "outputs", "digits_fgm", [])
    with pytest.raises(UserError, match="digits_fgm is no distillation of Stable Diffusion 3"):
        export.main([*digits, "format=diffusers", f"out={tmp_path / 'out'}"])
    run = [*run_of(settings), "format=diffusers", f"out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="lora = keep: sd3_fgm trained whole networks"):
        export.main([*run, "lora=keep"])
    (root / "model" / "text_encoder_2").rename(root / "model" / "gone")
    try:
        with pytest.raises(UserError, match="no text_encoder_2/ on this machine"):
            export.main(run)
    finally:
        (root / "model" / "gone").rename(root / "model" / "text_encoder_2")
    monkeypatch.setattr("fgm.cli.publish.copy_part", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.main(run)
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
