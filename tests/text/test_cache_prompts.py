"""make cache-prompts: once, from every kind of source; what is missing is said before torch is imported."""

import json
from pathlib import Path

import pytest
from prompt_caches import LENGTH
from tiny_runs import Said, light, refused
from tiny_sd3 import SIZE

from fgm.cli import cache_prompts
from fgm.data.text.index import PromptCache
from fgm.data.text.sources import ShapesGrammar


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
