"""A cache of encoded prompts is complete or absent, and of these prompts and encoders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_caches import PROMPTS, by_pipeline, written
from tiny_sd3 import save_tiny_pipeline

from fgm.data import text_encoders
from fgm.data.encodings import INDEX, CachedText, PromptCache
from fgm.utils.errors import UserError


def test_a_killed_command_resumes_at_its_shard_and_writes_the_same_bytes(
    plan: PromptCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, shard_size=2)
    whole = written(replace(plan, directory=str(tmp_path / "whole")), batch=2)
    write_shard, made = text_encoders.write_shard, []

    def dies_at_second(path: Path, *rest: Any) -> None:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(path.name)
        write_shard(path, *rest)

    monkeypatch.setattr(text_encoders, "write_shard", dies_at_second)
    with pytest.raises(KeyboardInterrupt):
        written(plan, batch=2)
    with pytest.raises(UserError, match="no encoded prompts; run make cache-prompts"):
        plan.read_index()
    made.clear()
    monkeypatch.setattr(
        text_encoders, "write_shard", lambda path, *rest: (made.append(path.name), write_shard(path, *rest))
    )
    written(plan, batch=2)
    assert made == ["00001.safetensors", "00002.safetensors"]
    files = sorted(path.name for path in Path(plan.directory).iterdir())
    assert files == ["00000.safetensors", *made, INDEX]
    for name in files:
        assert (Path(plan.directory) / name).read_bytes() == (Path(whole.directory) / name).read_bytes()


def test_shards_of_other_prompts_are_replaced(plan: PromptCache, model: Path) -> None:
    """A cache that was never finished is started again with other prompts: no row of the old one survives."""
    written(plan)
    (Path(plan.directory) / INDEX).unlink()
    Path(plan.prompts.file).write_text("\n".join(reversed(PROMPTS)))  # type: ignore[attr-defined]
    words, _ = CachedText(written(plan))(torch.arange(5))
    assert torch.equal(words, by_pipeline(model, ["", *reversed(PROMPTS)])[0])


def test_a_cache_of_other_encoders_is_refused(plan: PromptCache, tmp_path: Path, model: Path) -> None:
    written(plan)
    other = replace(plan, model=str(save_tiny_pipeline(tmp_path / "other", seed=1)))
    with pytest.raises(UserError, match=r"encoded with other encoders"):
        other.read_index()
    (tmp_path / "nothing").mkdir()
    assert replace(plan, model=str(tmp_path / "nothing")).read_index().digest == plan.read_index().digest


@pytest.mark.parametrize(
    ("change", "named"),
    [({"max_length": 25}, "max_length"), ({"dtype": "bfloat16"}, "dtype"), ({"shard_size": 4}, "shard_size")],
)
def test_a_cache_of_other_settings_is_refused(change: dict[str, Any], named: str, plan: PromptCache) -> None:
    written(plan)
    with pytest.raises(UserError, match=f"encoded with other {named}"):
        replace(plan, **change).read_index()
    Path(plan.prompts.file).write_text("a cat\n")  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="encoded with other prompts"):
        plan.read_index()


def test_a_damaged_cache_is_refused(plan: PromptCache) -> None:
    shard = Path(written(plan).directory) / "00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-4])
    with pytest.raises(UserError, match="damaged"):
        CachedText(plan)
    shard.unlink()
    with pytest.raises(UserError, match="missing or from another cache"):
        CachedText(plan)
    (Path(plan.directory) / INDEX).write_text("{")
    with pytest.raises(UserError, match="not an index of encoded prompts"):
        CachedText(plan)


def test_copies_of_a_network_share_one_text(plan: PromptCache) -> None:
    from copy import deepcopy

    text: Any = CachedText(written(plan))
    assert deepcopy(torch.nn.ModuleList([text]))[0] is text
    assert not text.state_dict() and not list(text.parameters())
    with pytest.raises(IndexError, match="prompt 5 of 5"):
        text(torch.tensor([5]))


def test_preloaded_encodings_are_those_of_the_shards_and_of_no_other_prompt(plan: PromptCache) -> None:
    text, indices = CachedText(written(plan)), torch.tensor([3, 1, 3])
    expected, empty = text(indices), text(torch.zeros(2, dtype=torch.int64))
    with text.preload(indices):
        assert all(map(torch.equal, text(indices), expected))
        assert all(map(torch.equal, text(torch.zeros(2, dtype=torch.int64)), empty))
    with pytest.raises(IndexError, match="not preloaded"), text.preload(indices):
        text(torch.tensor([2]))
