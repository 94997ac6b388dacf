"""Published pipelines of any family as teachers: recognised, loaded, encoded and decoded as stock."""

import inspect
import json
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from documents import blocks
from stock_families import TEXTS, load, pipe_of, pipe_side, save, size, stock
from tiny_families import TINY, rows
from torch import Tensor
from torch.testing import assert_close

from fgm.flow.times import shift_time
from fgm.teachers.diffusers.adapter import TransformerVelocity, geometry
from fgm.teachers.diffusers.conditions import EncodedPrompts, PromptFile, encode_prompts, load_prompts, save_prompts
from fgm.teachers.diffusers.dataset import FamilyPrompts
from fgm.teachers.diffusers.families import FAMILIES
from fgm.teachers.diffusers.latents import FamilyAutoencoder
from fgm.utils.errors import UserError

MASKED = [name for name, tiny in TINY.items() if any("mask" in a for a in FAMILIES[tiny.pipeline].arguments)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a pipeline as published, with its encoded prompts beside the parts."""

    return cache(lambda name: save(name, tmp_path_factory.mktemp(name)))


def inputs(net: TransformerVelocity, n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    return torch.randn(n, *net.shape, generator=noise), torch.rand(n, generator=noise), torch.arange(1, n + 1)


@pytest.mark.parametrize("name", TINY)
def test_published_directory_is_recognised_and_loaded_exactly(name: str, saved: Callable[[str], Path]) -> None:
    net = load(name, saved(name))
    assert net.family is FAMILIES[TINY[name].pipeline] and net.shape == TINY[name].shape
    assert net.pixels_per_latent == pipe_side(name)
    for key, weight in pipe_of(name).transformer.state_dict().items():
        assert torch.equal(weight, net.transformer.state_dict()[key])
    x_t, t, prompts = inputs(net)
    given = {key: [row[key] for row in rows(name)[1:]] for key in net.family.arguments}
    assert torch.equal(net(x_t, t, prompts), net(x_t, t, given))


@pytest.mark.parametrize("name", TINY)
def test_images_of_latents_are_the_stock_pipelines(name: str, saved: Callable[[str], Path]) -> None:
    """Up to four times what the last place of each latent does; most values lie within the range of the clamp."""
    (latents, _), (images, _) = stock(name, False), stock(name, False, "pt")
    data = FamilyPrompts(PromptFile(str(saved(name) / "prompts.safetensors")), str(saved(name)), **size(name))
    if name == "flux2_klein":  # its pipeline's latents are codes
        shuffled = torch.nn.functional.pixel_unshuffle(latents, 2)
        latents = (shuffled - data.autoencoder.mean) / data.autoencoder.std
    ours = (data.to_images(latents) / 2 + 0.5).clamp(0, 1)
    expected = images[:, images.shape[1] // 2] if name == "wan" else images
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.5 and expected.std() > 0.01
    signs = 2 * torch.randint(0, 2, latents.shape, generator=torch.Generator().manual_seed(0)) - 1
    nudged = (data.to_images(latents * (1 + 2**-23 * signs)) / 2 + 0.5).clamp(0, 1)
    rounding = float((nudged - ours).abs().max())
    assert rounding < 1e-4
    assert_close(ours, expected, rtol=0, atol=4 * rounding)


@pytest.mark.parametrize("name", TINY)
def test_encoder_and_decoder_use_inverse_maps(name: str) -> None:
    vae, family = pipe_of(name).vae, FAMILIES[TINY[name].pipeline]
    ours, x = FamilyAutoencoder(vae, family.latents), torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        encoded = vae.encode(x.unsqueeze(2) if ours.framed else x)
    code = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    assert_close(ours.to_code(ours.encode(x)), code, rtol=1e-5, atol=1e-5)


DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 2, "max_image_seq_len": 64}
SCHEDULES = [(name, {"shift": 3.0}) for name in ("sd3", "sana", "aura_flow", "z_image")]
SCHEDULES += [
    (name, DYNAMIC) for name in ("sd3", "flux_dev", "flux2_klein", "qwen_image", "z_image", "lumina2", "chroma")
]
SCHEDULES += [("cogview4", DYNAMIC | {"time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75})]


@pytest.mark.parametrize("name, schedule", SCHEDULES)
def test_shift_is_that_of_the_pipelines_schedule(name: str, schedule: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, family, shape = pipe_of(name), FAMILIES[TINY[name].pipeline], TINY[name].shape
    monkeypatch.setattr(pipe, "scheduler", diffusers.FlowMatchEulerDiscreteScheduler(**schedule))
    _, sigmas = stock.__wrapped__(name, False)
    tokens = shape[-1] * shape[-2] // family.layout.patch**2
    evenly = torch.tensor([1.0, 0.5, 0.25] if name == "cogview4" else [1.0, 0.875, 0.5, 0.25])
    shift = family.shift(pipe.scheduler.config, tokens, shape[0], steps=len(evenly))
    assert shift > 1.05
    assert_close(shift_time(evenly, shift), sigmas[:-1], rtol=1e-6, atol=0)


def with_encodings(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline, whose own encode_prompt is given encodings of TEXTS in place of encoders."""
    pipe, known, listed = pipe_of(name), dict(zip(TEXTS, rows(name), strict=True)), FAMILIES[TINY[name].pipeline].listed
    original, stack = pipe.encode_prompt, list if listed else torch.stack

    @wraps(original)
    def encode(prompt: list[str], **options: Any) -> Any:
        table = [known[text] for text in prompt]
        given = {key: stack([row[key] for row in table]) for key in table[0]}
        if options.get("do_classifier_free_guidance"):  # the positive prompt must not be taken for the null prompt
            given |= {f"negative_{key}": value for key, value in given.items()}
            given |= {key: stack([known[TEXTS[1]][key]]) for key in table[0]}
        takes = inspect.signature(original).parameters
        return original(prompt=prompt, **options | {key: value for key, value in given.items() if key in takes})

    monkeypatch.setattr(pipe, "encode_prompt", encode)
    return pipe


@pytest.mark.parametrize("name", TINY)
def test_encodings_carry_the_names_of_the_pipelines_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = encode_prompts(with_encodings(name, monkeypatch), TEXTS[1:])
    for row, known in zip(made, rows(name), strict=True):
        assert row.keys() == FAMILIES[TINY[name].pipeline].arguments.keys()
        assert all(torch.equal(row[key], known[key]) for key in row)


def test_documented_function_encodes_prompts_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, names = with_encodings("sd3", monkeypatch), {}
    monkeypatch.setattr(pipe, "to", lambda device: pipe)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda model, **parts: pipe)
    (code,) = [block for block in blocks("docs/teachers.md", "python") if "def encode(model" in block]
    exec(code, names)
    names["encode"]("model", TEXTS[1:], tmp_path / "prompts.safetensors")
    file = PromptFile(str(tmp_path / "prompts.safetensors"))
    assert file.read_index().prompts == TEXTS
    for row, known in zip(file.read().rows, rows("sd3"), strict=True):
        assert all(torch.equal(row[key], known[key]) for key in known)


@pytest.mark.parametrize("name", [*MASKED, "z_image"])
def test_prompts_of_several_lengths_share_a_batch(name: str, saved: Callable[[str], Path]) -> None:
    net = load(name, saved(name))
    short = {
        key: part[:3] if part.ndim == 2 or part.dtype == torch.bool else part for key, part in rows(name)[1].items()
    }
    net.prompts = EncodedPrompts([rows(name)[0], short, rows(name)[0]])
    x_t, t, prompts = inputs(net)
    alone = torch.cat([net(x_t[i : i + 1], t[i : i + 1], prompts[i : i + 1]) for i in range(2)])
    assert_close(net(x_t, t, prompts), alone, rtol=1e-5, atol=1e-5)


def test_lengths_without_a_mask_are_rejected(saved: Callable[[str], Path]) -> None:
    net = load("wan", saved("wan"))
    net.prompts = EncodedPrompts(
        [row | {"prompt_embeds": row["prompt_embeds"][: 3 + i]} for i, row in enumerate(rows("wan"))]
    )
    with pytest.raises(ValueError, match="prompt_embeds has several lengths and no mask"):
        net(*inputs(net))


def other_pipeline(directory: Path) -> None:
    (directory / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


BAD: dict[str, tuple[Callable[[Path], Any], dict[str, int], str]] = {
    "another family": (other_pipeline, {}, "StableDiffusionPipeline is no pipeline of a known family"),
    "no index": (lambda d: (d / "model_index.json").unlink(), {}, "model_index.json"),
    "no autoencoder": (lambda d: (d / "vae" / "config.json").unlink(), {}, "no whole vae/ on this machine"),
    "a size that does not fit": (lambda d: None, {"height": 40}, "height = 40: give a multiple of 16"),
}


@pytest.mark.parametrize("change, at, message", BAD.values(), ids=BAD)
def test_bad_directory_is_a_one_line_user_error(change: Any, at: dict, message: str, tmp_path: Path) -> None:
    pipe_of("sd3").save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        geometry(str(tmp_path), **{"height": 32, "width": 32} | at)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_prompts_are_one_line_user_errors(tmp_path: Path) -> None:
    file = tmp_path / "prompts.safetensors"
    with pytest.raises(UserError, match="no encoded prompts"):
        load_prompts(str(file))
    save_prompts(rows("sd3")[:2], TEXTS, file)
    with pytest.raises(UserError, match="the same encodings of each of its 3 prompts"):
        load_prompts(str(file))
    save_prompts(rows("wan"), TEXTS, file)
    family, prompts = FAMILIES["StableDiffusion3Pipeline"], load_prompts(str(file))
    with pytest.raises(UserError, match="the encoded prompts lack pooled_prompt_embeds"):
        TransformerVelocity(pipe_of("sd3").transformer, family, (4, 4, 4), prompts)
