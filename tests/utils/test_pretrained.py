"""Published weights on this machine: complete or not, damaged or not, identified by a fingerprint."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from fgm.utils.errors import UserError
from fgm.utils.pretrained import (
    fingerprint,
    hash_of_checkpoint,
    locate,
    require_checkpoint,
    weight_files,
)

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_hub_id_resolves_to_its_snapshot_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate("a/b") == Path("a/b") and locate(str(tmp_path)) == tmp_path
    assert locate("no valid hub id") == Path("no valid hub id")
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert locate("a/b") == snapshot


def test_sharded_network_is_complete_only_with_all_its_shards(tmp_path: Path) -> None:
    weight_map = dict(zip("ab", SHARDS, strict=True))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / SHARDS[0]).touch()
    assert weight_files(tmp_path) == []
    (tmp_path / SHARDS[1]).touch()
    assert weight_files(tmp_path) == [tmp_path / name for name in SHARDS]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_damaged_index_is_a_user_error(content: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UserError, match=f"^{index}: "):
        weight_files(tmp_path)


def test_checkpoint_is_identified_by_its_sha256(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_8.pth"
    with pytest.raises(UserError, match=r"comes from https://github.com/gnobitab/RectifiedFlow"):
        require_checkpoint(str(file), None)
    file.write_bytes(b"weights")
    digest = sha256(b"weights").hexdigest()
    assert require_checkpoint(str(file), None) == require_checkpoint(str(file), digest[:8].upper()) == file
    with pytest.raises(UserError, match="another file"):
        require_checkpoint(str(file), "0" * 8)
    assert hash_of_checkpoint(file) == digest[:8]
    with pytest.raises(UserError, match="promises 01234567"):
        hash_of_checkpoint(file.rename(tmp_path / "weights-01234567.pth"))


def test_fingerprint_depends_on_tensors_and_not_on_files(tmp_path: Path) -> None:
    a, b = torch.arange(2500.0).reshape(50, 50), torch.arange(7.0)
    save_file({"a": a, "b": b}, tmp_path / "whole.safetensors", metadata={"made": "today"})
    save_file({"a": a}, tmp_path / "part1.safetensors")
    save_file({"b": b}, tmp_path / "part2.safetensors")
    whole = fingerprint([tmp_path / "whole.safetensors"])
    assert whole == "9d8153a88af26ef4"  # as caches of encoded prompts and model cards have it
    assert whole == fingerprint([tmp_path / "part1.safetensors", tmp_path / "part2.safetensors"])
    changes = {"value": {"a": a, "b": b + 1e-6}, "dtype": {"a": a, "b": b.half()}, "name": {"c": a, "b": b},
               "shape": {"a": a.reshape(2, 1250), "b": b}}  # fmt: skip
    for name, changed in changes.items():
        save_file(changed, tmp_path / f"{name}.safetensors")
        assert fingerprint([tmp_path / f"{name}.safetensors"]) != whole


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "git-lfs pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "header of an unknown form": lambda content: (2).to_bytes(8, "little") + b"[]",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_safetensors_file_is_a_user_error(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3)}, file)
    fingerprint([file])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"^{file} is no complete .safetensors file"):
        fingerprint([file])
