"""Stable Diffusion 3 as a velocity network, on a tiny random pipeline: diffusers' numbers and bad input."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tiny_sd3 import SIZE, TRANSFORMER, save_tiny_pipeline
from torch import Tensor, nn
from torch.testing import assert_close

from fgm.data.autoencoder import Autoencoder
from fgm.flow.paths import RectifiedPath
from fgm.networks import sd3
from fgm.networks.generator import FewStepGenerator
from fgm.networks.guidance import ClassifierFreeGuidance
from fgm.networks.sd3 import SD3Velocity, untrained
from fgm.utils import pipelines
from fgm.utils.errors import UserError

os.environ["HF_HUB_OFFLINE"] = "1"
TOKENS = 9


class Table(nn.Module):
    """Random encodings, in place of a cache."""

    def __init__(self, **widths: int) -> None:
        super().__init__()
        self.index = SimpleNamespace(widths={"words": 32, "pooled": 32} | widths)

    def forward(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        rows = [torch.randn(TOKENS + 1, 32, generator=torch.Generator().manual_seed(i)) for i in prompts.tolist()]
        return torch.stack(rows)[:, 1:], torch.stack(rows)[:, 0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_pipeline(tmp_path_factory.mktemp("sd3")))


@pytest.fixture(scope="module")
def pipe(model: str) -> Any:
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline.from_pretrained(model)


@pytest.fixture
def net(model: str) -> SD3Velocity:
    return sd3.pretrained(model, Table(), SIZE)


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 4, 4, generator=noise), torch.rand(n, generator=noise), torch.arange(n) % 2


def test_velocity_is_the_transformers_output_at_1000_t(net: SD3Velocity, pipe: Any) -> None:
    x_t, t, prompts = inputs()
    words, pooled = Table()(prompts)
    expected = pipe.transformer(x_t, words, pooled, 1000 * t, return_dict=False)[0]
    assert torch.equal(net(x_t, t, prompts), expected)
    assert net.shape == (4, 4, 4) and expected.abs().mean() > 0.01


def test_time_is_not_rounded_to_the_networks_precision(net: SD3Velocity) -> None:
    """In bfloat16 1000 t = 737 would be 740: the features of time are those of the float32 timestep."""
    x_t, _, prompts = inputs()
    seen: list[Tensor] = []
    net.to(torch.bfloat16).transformer.time_text_embed.time_proj.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0])
    )
    v = net(x_t, torch.full((3,), 0.737), prompts)
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], torch.full((3,), 737.0))
    assert v.dtype == torch.float32


def test_generator_is_one_euler_step_of_the_pipeline(net: SD3Velocity, pipe: Any) -> None:
    """x_0 = z - t v(z, t) is what the pipeline's scheduler does with a single sigma t."""
    x_t, _, prompts = inputs()
    words, pooled = Table()(prompts)
    drawn = pipe(
        prompt_embeds=words, pooled_prompt_embeds=pooled, guidance_scale=1.0, num_inference_steps=1, sigmas=[0.9],
        latents=x_t.clone(), output_type="latent", height=SIZE, width=SIZE,
    ).images  # fmt: skip
    t_star = float(pipe.scheduler.sigmas[0])
    ours = FewStepGenerator(net, RectifiedPath(), t_star=t_star, c_in="one")(x_t, prompts)
    assert_close(ours, drawn, rtol=1e-5, atol=1e-5)


def test_guidance_extrapolates_from_the_empty_prompt(net: SD3Velocity) -> None:
    x_t, t, prompts = inputs()
    v, v_null = net(x_t, t, prompts), net(x_t, t, torch.zeros(3, dtype=torch.int64))
    assert_close(ClassifierFreeGuidance(net, 4.5)(x_t, t, prompts), v_null + 4.5 * (v - v_null), rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient(model: str) -> None:
    x_t, t, prompts = inputs()
    slopes = []
    for checkpointing in (False, True):
        net, x = sd3.pretrained(model, Table(), SIZE, checkpointing), x_t.clone().requires_grad_()
        net(x, t, prompts).square().sum().backward()
        slopes.append([x.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(slopes[0]) > 40 and all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_sizes_that_diffusers_would_crop_are_rejected(net: SD3Velocity, model: str) -> None:
    x_t, t, prompts = inputs()
    for size in (24, 40, 33):
        with pytest.raises(UserError, match=f"network.size = {size} is no multiple of 16"):
            untrained(TRANSFORMER, Table(), size)
    with pytest.raises(UserError, match="takes images of at most 64 pixels"):
        untrained(TRANSFORMER, Table(), 80)
    with pytest.raises(ValueError, match=r"SD3Velocity of shape \(4, 4, 4\) was given \(4, 4, 5\)"):
        net(torch.zeros(1, 4, 4, 5), t[:1], prompts[:1])
    with pytest.raises(ValueError, match="needs a prompt for each latent"):
        net(x_t, t)


def test_encodings_of_other_widths_are_rejected(model: str) -> None:
    with pytest.raises(UserError, match="needs encodings of widths"):
        sd3.pretrained(model, Table(words=64), SIZE)


def test_latents_are_scaled_and_shifted_as_in_the_pipeline(model: str, pipe: Any) -> None:
    autoencoder = Autoencoder(model, batch=2)
    z = inputs()[0]
    config = pipe.vae.config
    images = pipe.vae.decode(z / config.scaling_factor + config.shift_factor).sample
    assert_close(autoencoder.decode(z), images, rtol=0, atol=1e-5)
    codes = pipe.vae.encode(images).latent_dist.mean
    assert_close(autoencoder.encode(images), (codes - config.shift_factor) * config.scaling_factor, rtol=0, atol=1e-5)
    assert images.shape == (3, 3, SIZE, SIZE) and not any(p.requires_grad for p in autoencoder.parameters())


def test_sample_of_the_posterior_has_its_standard_deviation(model: str) -> None:
    """To six standard errors of n draws: 1 / sqrt(2 n) of the deviation, 1 / sqrt(n) of it for the mean."""
    n, autoencoder, x = 200, Autoencoder(model, batch=200), torch.zeros(1, 3, SIZE, SIZE)
    expected = autoencoder.vae.encode(x).latent_dist.std * autoencoder.scale
    draws = autoencoder.encode(x.expand(n, -1, -1, -1), torch.Generator().manual_seed(0))
    assert_close(draws.std(0)[None], expected, rtol=6 / (2 * n) ** 0.5, atol=0)
    assert_close(draws.mean(0)[None], autoencoder.encode(x), rtol=0, atol=6 / n**0.5 * float(expected.max()))


def test_bfloat16_decodes_close_to_float32(model: str) -> None:
    z = inputs()[0]
    exact, half = (Autoencoder(model, dtype).decode(z) for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32 and 0 < (exact - half).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_damaged_weights_are_a_one_line_user_error(part: str, tmp_path: Path, model: str) -> None:
    """diffusers would fill what is missing at random, and only warn."""
    from safetensors.torch import load_file, save_file

    def load(directory: str) -> Any:
        return sd3.pretrained(directory, Table(), SIZE) if part == "transformer" else Autoencoder(directory)

    file = shutil.copytree(model, tmp_path / "sd3") / part / "diffusion_pytorch_model.safetensors"
    content, weights = file.read_bytes(), load_file(file)
    last = sorted(weights)[-1]
    save_file({name: w for name, w in weights.items() if name != last}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{part} lacks 1 weights, {last} first"):
        load(str(tmp_path / "sd3"))
    for damaged in (content[: len(content) // 2], b"garbage"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{part} does not load \(.*\): download it again") as error:
            load(str(tmp_path / "sd3"))
        assert "\n" not in str(error.value)


def test_hub_cache_is_read_offline(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--stabilityai--stable-diffusion-3-medium-diffusers"
    shutil.copytree(model, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert pipelines.require_parts(pipelines.SD3_MEDIUM, ("transformer", "vae")) == repository / "snapshots" / "abc"
    assert sd3.pretrained(sd3.SD3_MEDIUM, Table(), SIZE).shape == (4, 4, 4)


def billions(build: Callable[[], Any]) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters()) / 1e9


def test_published_sizes_are_those_of_the_architectures() -> None:
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def clip(width: int, layers: int, heads: int) -> Any:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
                projection_dim=width,
            )
        )  # fmt: skip

    def t5() -> Any:
        return T5EncoderModel(
            T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
        )

    def vae() -> Any:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False,
            use_post_quant_conv=False,
        )  # fmt: skip

    parts = (lambda: clip(768, 12, 12), lambda: clip(1280, 32, 20), t5, vae)
    assert sum(map(billions, parts)) == pytest.approx(pipelines.OTHER_PARTS, abs=0.01)
    for model, size in pipelines.BILLIONS.items():
        arguments = sd3.architecture(model)
        assert billions(lambda: SD3Transformer2DModel(**arguments)) == pytest.approx(size, abs=0.01)  # noqa: B023


def test_missing_parts_are_one_line_with_source_size_and_memory(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        pipelines.require_parts(pipelines.SD3_MEDIUM, ("transformer", "vae"))
    for part in ("no transformer/ and no vae/", "hf download stabilityai/", "15 GB", "network.model=", "69 GB"):
        assert part in str(error.value)
    directory = shutil.copytree(model, tmp_path / "sd3")
    assert pipelines.require_parts(str(directory), ("transformer", "vae")) == directory
    (directory / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no vae/ on this machine"):
        pipelines.require_parts(str(directory), ("transformer", "vae"))
    (directory / "transformer" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        sd3.architecture(str(directory))
