"""The cache of encoded prompts: what diffusers' pipeline gives, whole or absent, and of the right encoders."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Said, light, refused
from tiny_sd3 import SIZE, save_tiny_pipeline
from torch import Tensor
from torch.testing import assert_close

from fgm import cache_prompts
from fgm.data import prompted
from fgm.data.prompts import Prompts
from fgm.data.shapes.vocabulary import encode
from fgm.errors import Refusal
from fgm.evaluation import Asking, measure
from fgm.evaluation.colour_panel import ColourPanel
from fgm.evaluation.evaluation import Evaluation
from fgm.evaluation.quantise import quantise
from fgm.evaluation.sampling import Source
from fgm.streams import sample_noise, stream
from fgm.text import cache as caching
from fgm.text.cache import CachedText, encoders_of, write_cache
from fgm.text.index import INDEX, PromptCache
from fgm.text.sources import GenEvalMetadata, JsonLines, PromptSource, ShapesGrammar, TextFile

os.environ["HF_HUB_OFFLINE"] = "1"
PROMPTS = ["a red cat", "two dogs, one blue", "a photo of a bench", "x"]
LENGTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def plan(model: Path, tmp_path: Path) -> PromptCache:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return PromptCache(TextFile(str(file)), str(tmp_path / "cache"), str(model), LENGTH, "float32", 5)


def written(plan: PromptCache, batch: int = 5, model: Path | None = None) -> PromptCache:
    index = plan.planned()
    write_cache(plan, index, encoders_of(index, str(model or plan.model)), batch, lambda done: None)
    return plan


@torch.inference_mode()
def by_pipeline(
    model: Path, prompts: list[str], without: tuple[str, ...] = (), **options: Any
) -> tuple[Tensor, Tensor]:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(model, **dict.fromkeys(without), **options)
    words, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=LENGTH
    )
    return words, pooled


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


@pytest.mark.parametrize(("lost", "kept"), [("text_encoder", slice(16, 32)), ("text_encoder_2", slice(0, 16))])
def test_without_a_clip_its_share_is_zeros(
    lost: str, kept: slice, plan: PromptCache, model: Path, tmp_path: Path
) -> None:
    whole, whole_pooled = by_pipeline(model, ["", *PROMPTS])
    poorer = shutil.copytree(model, tmp_path / "poorer")
    shutil.rmtree(poorer / lost)
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


def test_a_killed_command_goes_on_at_its_shard_and_writes_the_same_bytes(
    plan: PromptCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, shard_size=2)
    whole = written(replace(plan, directory=str(tmp_path / "whole")), batch=2)
    write_shard, made = caching.write_shard, []

    def dies_at_second(path: Path, *rest: Any) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(path.name)
        write_shard(path, *rest)

    monkeypatch.setattr(caching, "write_shard", dies_at_second)
    with pytest.raises(KeyboardInterrupt):
        written(plan, batch=2)
    with pytest.raises(Refusal, match="holds no encoded prompts: make cache-prompts"):
        plan.require()
    made.clear()
    monkeypatch.setattr(caching, "write_shard", lambda path, *rest: (made.append(path.name), write_shard(path, *rest)))
    written(plan, batch=2)
    assert made == ["00001.safetensors", "00002.safetensors"]
    files = sorted(path.name for path in Path(plan.directory).iterdir())
    assert files == ["00000.safetensors", *made, INDEX]
    for name in files:
        assert (Path(plan.directory) / name).read_bytes() == (Path(whole.directory) / name).read_bytes()


def test_shards_of_other_prompts_are_made_again(plan: PromptCache, model: Path) -> None:
    """A cache that was never finished, then begun anew with other prompts: no row of the old one survives."""
    written(plan)
    (Path(plan.directory) / INDEX).unlink()
    Path(plan.prompts.file).write_text("\n".join(reversed(PROMPTS)))  # type: ignore[attr-defined]
    words, _ = CachedText(written(plan))(torch.arange(5))
    assert torch.equal(words, by_pipeline(model, ["", *reversed(PROMPTS)])[0])


def test_a_cache_of_other_encoders_is_refused(plan: PromptCache, tmp_path: Path, model: Path) -> None:
    written(plan)
    other = replace(plan, model=str(save_tiny_pipeline(tmp_path / "other", seed=1)))
    with pytest.raises(Refusal, match=r"encoded otherwise \(other encoders\)"):
        other.require()
    (tmp_path / "nothing").mkdir()
    assert replace(plan, model=str(tmp_path / "nothing")).require().digest == plan.require().digest


@pytest.mark.parametrize(
    ("change", "named"),
    [({"max_length": 25}, "max_length"), ({"dtype": "bfloat16"}, "dtype"), ({"shard_size": 4}, "shard_size")],
)
def test_a_cache_of_other_settings_is_refused(change: dict[str, Any], named: str, plan: PromptCache) -> None:
    written(plan)
    with pytest.raises(Refusal, match=rf"\(other {named}\)"):
        replace(plan, **change).require()
    Path(plan.prompts.file).write_text("a cat\n")  # type: ignore[attr-defined]
    with pytest.raises(Refusal, match=r"\(other prompts\)"):
        plan.require()


def test_a_spoilt_cache_is_refused(plan: PromptCache) -> None:
    shard = Path(written(plan).directory) / "00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-4])
    with pytest.raises(Refusal, match="is cut short"):
        CachedText(plan)
    shard.unlink()
    with pytest.raises(Refusal, match="is missing or of another cache"):
        CachedText(plan)
    (Path(plan.directory) / INDEX).write_text("{")
    with pytest.raises(Refusal, match="is no index of encoded prompts"):
        CachedText(plan)


def test_encodings_that_are_not_finite_are_refused(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "text_encoder_3" / "model.safetensors"
    weights = load_file(file)
    save_file({name: w * float("nan") for name, w in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(Refusal, match=r"t5 is not finite; try data\.cache\.dtype=float32"):
        written(replace(plan, model=str(broken)))
    assert list(Path(plan.directory).iterdir()) == []


def test_encoders_that_are_not_whole_are_refused(plan: PromptCache, model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model, tmp_path / "broken")
    file = broken / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    last = sorted(weights)[-1]
    save_file({name: w for name, w in weights.items() if name != last}, file, metadata={"format": "pt"})
    with pytest.raises(Refusal, match=f"text_encoder_2: lacks 1 weights, {last} first"):
        written(replace(plan, model=str(broken)))
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(Refusal, match="tokenizer is missing: it should hold the tokenizer of text_encoder"):
        written(replace(plan, model=str(broken)))


def test_every_source_reads_its_prompts_once_and_in_order(tmp_path: Path) -> None:
    text, lines, metadata = (tmp_path / name for name in ("a.txt", "a.jsonl", "metadata.jsonl"))
    text.write_text("a cat\n\n  a dog \na cat\n")
    lines.write_text('{"prompt": "a cat", "id": 1}\n{"prompt": "a dog"}\n')
    clause = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    metadata.write_text(json.dumps(clause) + "\n")
    assert TextFile(str(text)).read() == JsonLines(str(lines)).read() == ["a cat", "a dog"]
    assert GenEvalMetadata(str(metadata)).read() == ["a cat"]
    captions = ShapesGrammar(50).read()
    assert len(set(captions)) == len(captions) > 30 and len(encode(captions)) == len(captions)
    assert captions == ShapesGrammar(50).read() != ShapesGrammar(50, seed=1).read()


@pytest.mark.parametrize("source", [TextFile, JsonLines, GenEvalMetadata])
def test_empty_and_missing_prompt_files_are_refused(source: type[Any], tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        (tmp_path / "prompts").write_text(content)
        with pytest.raises(Refusal, match="is empty: it should hold"):
            source(str(tmp_path / "prompts")).read()
    with pytest.raises(Refusal, match="is missing: it should hold"):
        source(str(tmp_path / "nowhere")).read()


def test_a_line_without_a_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')
    with pytest.raises(Refusal, match=r"a\.jsonl, line 2: prompt must be a text"):
        JsonLines(str(tmp_path / "a.jsonl")).read()


def test_prompts_are_data_without_images(plan: PromptCache, model: Path) -> None:
    data = Prompts(written(plan), SIZE, str(model))
    assert data.shape == (4, 4, 4) and data.reference(3, stream("x", index=0)).shape == (0, 4, 4, 4)
    drawn = data.conditions(4000, stream("conditions", index=0))
    shares = drawn.bincount(minlength=5) / 4000
    assert shares[0] == 0 and (shares[1:] - 0.25).abs().max() < 0.04
    assert data.encode(["x", "a red cat", ""]).tolist() == [4, 1, 0]
    assert prompted(data) is data and data.decode(data.encode(["x", "a red cat", ""])) == ["x", "a red cat", ""]
    with pytest.raises(Refusal, match="'a blue cat' is not in"):
        data.encode(["x", "a blue cat"])
    with pytest.raises(Refusal, match="prompts without images"):
        data.draw(1, stream("x", index=0))
    with pytest.raises(Refusal, match="no multiple of 16"):
        Prompts(plan, 40, str(model))


def test_the_panel_asks_for_the_prompts_and_sees_images(plan: PromptCache, model: Path) -> None:
    data, panel = Prompts(written(plan), SIZE, str(model)), ColourPanel(plan)
    assert isinstance(panel, Asking)
    assert panel.prompts(panel.questions(torch.arange(5))) == [*PROMPTS, PROMPTS[0]]
    source = Evaluation(panel, batch=2).source(Source("x_0 = z", First(), 1, "ema"), data, torch.device("cpu"), 3)
    images = source.take(range(3)).x
    z = sample_noise(1234, range(3), data.shape)
    assert images.shape == (3, 3, SIZE, SIZE) and torch.equal(images[:2], quantise(data.to_images(z[:2])))
    assert data.encode(panel.prompts(torch.arange(4))).tolist() == panel.conditions(torch.arange(4)).tolist()


def test_the_panel_knows_red_from_grey(plan: PromptCache) -> None:
    panel = ColourPanel(written(plan))
    grey, red = torch.full((1, 3, 4, 4), 1 / 255), torch.tensor([2.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = {m.metric: m.value for m in measure(panel, torch.cat([grey, red]))}
    spread = torch.tensor([1.0, -1, -1]).repeat(16).std().item()
    expected = {"pixel_mean": (1 / 255 - 1 / 3) / 2, "pixel_std": spread / 2, "saturation": 0.5, "clipped": 0.5}
    assert found == pytest.approx(expected, abs=1e-5)


class First(torch.nn.Module):
    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        return z


def settings(plan: PromptCache) -> list[str]:
    file = plan.prompts.file  # type: ignore[attr-defined]
    return [
        "experiment=sd3_fgm", f"network.model={plan.model}", f"network.size={SIZE}", f"data.cache.prompts.file={file}",
        f"data.cache.directory={plan.directory}", f"data.cache.max_length={LENGTH}", "data.cache.dtype=float32",
        "data.cache.shard_size=5",
    ]  # fmt: skip


def test_the_command_encodes_once_and_then_says_so(plan: PromptCache, capsys: Said) -> None:
    cache_prompts.main([*settings(plan), "device=cpu", "batch=2"])
    said = capsys.readouterr().out
    assert "5/5 prompts" in said and "is written: 5 prompts" in said and "warning" not in said
    stamp = (Path(plan.directory) / "00000.safetensors").stat().st_mtime_ns
    cache_prompts.main(settings(plan))
    assert "is done: 5 prompts" in capsys.readouterr().out
    assert (Path(plan.directory) / "00000.safetensors").stat().st_mtime_ns == stamp


def test_the_command_reads_geneval_metadata_and_the_grammar(plan: PromptCache, tmp_path: Path, capsys: Said) -> None:
    line = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    given = [a for a in settings(plan) if not a.startswith("data.cache.prompts.file")]
    where, file = f"data.cache.directory={tmp_path}", f"data.cache.prompts.file={tmp_path / 'metadata.jsonl'}"
    cache_prompts.main([*given, "prompts@data.cache.prompts=geneval", file, f"{where}/geneval", "device=cpu"])
    assert "is written: 2 prompts" in capsys.readouterr().out
    grammar = ["prompts@data.cache.prompts=shapes", "data.cache.prompts.n=20"]
    cache_prompts.main([*given, *grammar, f"{where}/grammar", "device=cpu"])
    (index,) = tmp_path.glob("grammar/index.json")
    assert json.loads(index.read_text())["prompts"] == ["", *ShapesGrammar(20).read()]


def test_the_command_warns_of_prompts_that_are_too_long(plan: PromptCache, capsys: Said) -> None:
    Path(plan.prompts.file).write_text("c" * 90)  # type: ignore[attr-defined]
    cache_prompts.main([*settings(plan), "device=cpu"])
    assert "warning: 1 of them are longer than text_encoder_3 takes" in capsys.readouterr().out


def test_what_is_missing_is_said_before_torch_is_imported(
    plan: PromptCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "no transformer/ and no vae/ on this machine" in light("train", ["experiment=sd3_fgm"])
    assert "no text encoder on this machine" in light("cache_prompts", ["experiment=sd3_fgm"])
    assert "holds no encoded prompts: make cache-prompts" in light("train", settings(plan))
    assert "network.size = 40 is no multiple of 16" in light("train", [*settings(plan), "network.size=40"])
    assert "data.size = 48 and network.size = 32 differ" in light("train", [*settings(plan), "data.size=48"])


def test_a_recipe_without_prompts_is_refused(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    line = refused(cache_prompts.main, ["experiment=digits_fgm"], capsys, monkeypatch)
    assert "digits_fgm reads no prompts" in line


def test_copies_of_a_network_share_one_text(plan: PromptCache) -> None:
    from copy import deepcopy

    text: Any = CachedText(written(plan))
    assert deepcopy(torch.nn.ModuleList([text]))[0] is text
    assert not text.state_dict() and not list(text.parameters())
    with pytest.raises(IndexError, match="prompt 5 of 5"):
        text(torch.tensor([5]))


def test_every_source_is_a_source() -> None:
    sources: list[PromptSource] = [TextFile(""), JsonLines(""), GenEvalMetadata(""), ShapesGrammar()]
    assert len({type(source) for source in sources}) == 4
