"""What a cache holds is what diffusers' pipeline encodes, whichever encoders are there and whatever their precision."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prompt_caches import LENGTH, PROMPTS, by_pipeline, written
from torch.testing import assert_close

from fgm.data.text.cache import CachedText
from fgm.data.text.encoders import CLIPS
from fgm.data.text.index import PromptCache
from fgm.utils.errors import UserError


def test_cached_encodings_are_the_pipelines(plan: PromptCache, model: Path) -> None:
    text = CachedText(written(plan))
    words, pooled = text(torch.arange(5))
    expected = by_pipeline(model, ["", *PROMPTS])
    assert torch.equal(words, expected[0]) and torch.equal(pooled, expected[1])
    assert words.shape == (5, 77 + LENGTH, 32) and words.std() > 0.1
    again, _ = text(torch.tensor([3, 0, 3]))
    assert torch.equal(again, words[[3, 0, 3]])


def test_half_precision_is_the_pipelines_too(plan: PromptCache, model: Path) -> None:
    words, pooled = CachedText(written(replace(plan, dtype="bfloat16")))(torch.arange(5))
    expected = by_pipeline(model, ["", *PROMPTS], torch_dtype=torch.bfloat16)
    assert words.dtype == torch.bfloat16
    assert torch.equal(words, expected[0]) and torch.equal(pooled, expected[1])


def test_without_t5_its_tokens_are_zeros(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    lighter = shutil.copytree(model, tmp_path / "lighter", ignore=shutil.ignore_patterns("*_3"))
    words, pooled = CachedText(written(replace(plan, model=str(lighter))))(torch.arange(5))
    expected = by_pipeline(model, ["", *PROMPTS], without=("text_encoder_3", "tokenizer_3"))
    assert torch.equal(words, expected[0]) and torch.equal(pooled, expected[1])
    assert not words[:, 77:].any() and words.shape[1] == 77 + LENGTH


@pytest.mark.parametrize(
    ("lost", "kept"),
    [(["text_encoder"], slice(16, 32)), (["text_encoder_2"], slice(0, 16)), ([*CLIPS], slice(0, 0))],
)
def test_without_a_clip_its_share_is_zeros(
    lost: list[str], kept: slice, plan: PromptCache, model: Path, tmp_path: Path
) -> None:
    whole, whole_pooled = by_pipeline(model, ["", *PROMPTS])
    poorer = shutil.copytree(model, tmp_path / "poorer")
    for name in lost:
        shutil.rmtree(poorer / name)
    words, pooled = CachedText(written(replace(plan, model=str(poorer))))(torch.arange(5))
    mask = torch.zeros(32).index_fill_(0, torch.arange(32)[kept], 1)
    assert_close(words[:, :77], whole[:, :77] * mask, rtol=0, atol=1e-6)
    assert_close(pooled, whole_pooled * mask, rtol=0, atol=1e-6)
    assert torch.equal(words[:, 77:], whole[:, 77:])


def test_too_long_prompts_are_counted_and_read_to_their_encoders_end(plan: PromptCache, model: Path) -> None:
    """Of tokens of one letter each: 30 are too many for T5's 24 here, 90 for CLIP's 77 too."""
    prompts = ["a" * 10, "b" * 30, "c" * 90]
    Path(plan.prompts.file).write_text("\n".join(prompts))  # type: ignore[attr-defined]
    text = CachedText(written(plan))
    assert text.index.truncated == {"text_encoder": 1, "text_encoder_2": 1, "text_encoder_3": 2}
    assert_close(text(torch.arange(1, 4)), by_pipeline(model, prompts), rtol=0, atol=2e-6)


def test_encodings_that_are_not_finite_are_refused(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "text_encoder_3" / "model.safetensors"
    weights = load_file(file)
    save_file({name: w * float("nan") for name, w in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"t5 is not finite; try data\.cache\.dtype=float32"):
        written(replace(plan, model=str(broken)))
    assert list(Path(plan.directory).iterdir()) == []


def test_encoders_that_are_not_whole_are_refused(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    last = sorted(weights)[-1]
    save_file({name: w for name, w in weights.items() if name != last}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"text_encoder_2: lacks 1 weights, {last} first"):
        written(replace(plan, model=str(broken)))
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(UserError, match="tokenizer is missing: it should hold the tokenizer of text_encoder"):
        written(replace(plan, model=str(broken)))
