"""make cache-prompts encodes once, from every kind of source."""

import json
from pathlib import Path

import pytest
from prompt_caches import LENGTH
from tiny_runs import Said, refused
from tiny_sd3 import SIZE

import fgm.cli.train
from fgm.cli import cache_prompts
from fgm.data.encodings import PromptCache
from fgm.data.prompts import ShapesCaptions


def settings(plan: PromptCache) -> list[str]:
    file = plan.prompts.file  # type: ignore[attr-defined]
    return [
        "experiment=sd3_fgm", f"network.model={plan.model}", f"network.size={SIZE}", f"data.cache.prompts.file={file}",
        f"data.cache.directory={plan.directory}", f"data.cache.max_length={LENGTH}", "data.cache.dtype=float32",
        "data.cache.shard_size=5",
    ]  # fmt: skip


def test_the_command_encodes_once(plan: PromptCache, capsys: Said) -> None:
    cache_prompts.main([*settings(plan), "device=cpu", "batch=2"])
    said = capsys.readouterr().out
    assert "5/5 prompts" in said and "is written: 5 prompts" in said and "warning" not in said
    stamp = (Path(plan.directory) / "00000.safetensors").stat().st_mtime_ns
    cache_prompts.main(settings(plan))
    assert "is done: 5 prompts" in capsys.readouterr().out
    assert (Path(plan.directory) / "00000.safetensors").stat().st_mtime_ns == stamp


def test_the_command_encodes_geneval_prompts_and_shapes_captions(
    plan: PromptCache, tmp_path: Path, capsys: Said
) -> None:
    line = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    given = [a for a in settings(plan) if not a.startswith("data.cache.prompts.file")]
    where, file = f"data.cache.directory={tmp_path}", f"data.cache.prompts.metadata={tmp_path / 'metadata.jsonl'}"
    cache_prompts.main([*given, "prompts@data.cache.prompts=geneval", file, f"{where}/geneval", "device=cpu"])
    assert "is written: 2 prompts" in capsys.readouterr().out
    grammar = ["prompts@data.cache.prompts=shapes", "data.cache.prompts.n=20"]
    cache_prompts.main([*given, *grammar, f"{where}/grammar", "device=cpu"])
    (index,) = tmp_path.glob("grammar/index.json")
    assert json.loads(index.read_text())["prompts"] == ["", *ShapesCaptions(20).read()]


def test_the_command_warns_of_truncated_prompts(plan: PromptCache, capsys: Said) -> None:
    Path(plan.prompts.file).write_text("c" * 90)  # type: ignore[attr-defined]
    cache_prompts.main([*settings(plan), "device=cpu"])
    assert "warning: 1 of them are longer than text_encoder_3 takes" in capsys.readouterr().out


def test_missing_weights_and_encodings_are_one_line(
    plan: PromptCache, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cases = {
        "no transformer/ and no vae/ on this machine": ["experiment=sd3_fgm"],
        "no encoded prompts; run make cache-prompts": settings(plan),
        "network.size = 40 is no multiple of 16": [*settings(plan), "network.size=40"],
        "data.size = 48 and network.size = 32 differ": [*settings(plan), "data.size=48"],
    }
    for message, arguments in cases.items():
        assert message in refused(fgm.cli.train.main, arguments, capsys, monkeypatch)
    line = refused(cache_prompts.main, ["experiment=sd3_fgm"], capsys, monkeypatch)
    assert "no text_encoder/ and no text_encoder_2/ on this machine" in line


def test_an_experiment_without_prompts_is_refused(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    line = refused(cache_prompts.main, ["experiment=digits_fgm"], capsys, monkeypatch)
    assert "digits_fgm uses no prompts" in line
