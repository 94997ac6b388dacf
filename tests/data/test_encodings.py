"""Cached encodings are those of diffusers' pipeline, bit for bit; incomplete encoders are refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prompt_caches import LENGTH, PROMPTS, by_pipeline, written
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fgm.data.encodings import CachedText, PromptCache
from fgm.utils.errors import UserError


def test_cached_encodings_equal_the_pipelines(plan: PromptCache, model: Path) -> None:
    text = CachedText(written(plan))
    words, pooled = text(torch.arange(5))
    expected = by_pipeline(model, ["", *PROMPTS])
    assert torch.equal(words, expected[0]) and torch.equal(pooled, expected[1])
    assert words.shape == (5, 77 + LENGTH, 32) and words.std() > 0.1
    again, _ = text(torch.tensor([3, 0, 3]))
    assert torch.equal(again, words[[3, 0, 3]])


def test_bfloat16_encodings_equal_the_pipelines(plan: PromptCache, model: Path) -> None:
    words, pooled = CachedText(written(replace(plan, dtype="bfloat16")))(torch.arange(5))
    expected = by_pipeline(model, ["", *PROMPTS], torch_dtype=torch.bfloat16)
    assert words.dtype == torch.bfloat16
    assert torch.equal(words, expected[0]) and torch.equal(pooled, expected[1])


def test_without_t5_its_tokens_are_zeros_as_in_the_pipeline(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    lighter = shutil.copytree(model, tmp_path / "lighter", ignore=shutil.ignore_patterns("*_3"))
    words, pooled = CachedText(written(replace(plan, model=str(lighter))))(torch.arange(5))
    expected = by_pipeline(model, ["", *PROMPTS], without=("text_encoder_3", "tokenizer_3"))
    assert torch.equal(words, expected[0]) and torch.equal(pooled, expected[1])
    assert not words[:, 77:].any() and words.shape[1] == 77 + LENGTH


def test_long_prompts_are_truncated_and_counted(plan: PromptCache, model: Path) -> None:
    """A letter is a token here: 30 are too many for T5's 24, and 90 for CLIP's 77 as well."""
    prompts = ["a" * 10, "b" * 30, "c" * 90]
    Path(plan.prompts.file).write_text("\n".join(prompts))  # type: ignore[attr-defined]
    text = CachedText(written(plan))
    assert text.index.truncated == {"text_encoder": 1, "text_encoder_2": 1, "text_encoder_3": 2}
    assert_close(text(torch.arange(1, 4)), by_pipeline(model, prompts), rtol=0, atol=2e-6)


def test_encoder_with_weights_that_are_not_finite_is_refused(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "text_encoder_3" / "model.safetensors"
    weights = {name: w * float("nan") for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"text_encoder_3: shared\.weight has 2560 values that are not finite"):
        written(replace(plan, model=str(broken)))
    assert not list(Path(plan.directory).glob("*.safetensors"))


def test_encodings_that_overflow_are_refused_and_not_written(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    """T5's last normalisation has values of root mean square 1: one above 1.14, times 3e38, is infinite."""
    large = shutil.copytree(model, tmp_path / "large")
    file = large / "text_encoder_3" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.final_layer_norm.weight"].fill_(3e38)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"t5 is not finite; try data\.cache\.dtype=float32"):
        written(replace(plan, model=str(large)))
    assert not list(Path(plan.directory).glob("*.safetensors"))


def test_an_encoder_that_lacks_a_file_is_refused_and_never_replaced_by_zeros(
    plan: PromptCache, model: Path, tmp_path: Path
) -> None:
    broken = replace(plan, model=str(shutil.copytree(model, tmp_path / "broken")))
    t5 = tmp_path / "broken" / "text_encoder_3"
    (t5 / "model.safetensors").rename(t5 / "model-00001-of-00002.safetensors")
    shards = {"weight_map": {str(i): f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    (t5 / "model.safetensors.index.json").write_text(str(shards).replace("'", '"'))
    with pytest.raises(UserError, match=r"text_encoder_3: weights are missing or incomplete"):
        broken.plan()
    shutil.rmtree(t5)
    assert list(broken.plan().encoders) == ["text_encoder", "text_encoder_2"]
    shutil.rmtree(tmp_path / "broken" / "text_encoder_2")
    with pytest.raises(UserError, match="no text_encoder_2/ on this machine"):
        broken.plan()


def test_an_encoder_that_lacks_a_weight_or_a_tokenizer_is_refused(
    plan: PromptCache, model: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    last = sorted(weights)[-1]
    save_file({name: w for name, w in weights.items() if name != last}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"text_encoder_2: .* {last}"):
        written(replace(plan, model=str(broken)))
    save_file(weights, file, metadata={"format": "pt"})
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(UserError, match="tokenizer is missing: it should hold the tokenizer of text_encoder"):
        written(replace(plan, model=str(broken)))
