"""Published pipelines on this machine: what is whole, what is damaged, which weights they hold, how large they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fgm.utils.errors import UserError
from fgm.utils.fingerprints import fingerprint, read_header
from fgm.utils.pretrained import BESIDE, SD3_MEDIUM, architecture, require, weight_files

PARTS = ("transformer", "vae")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def files_of(directory: Path) -> Path:
    """The transformer's and the VAE's files, of a byte or two."""
    for part in PARTS:
        (directory / part).mkdir(parents=True)
        (directory / part / "config.json").write_text("{}")
        (directory / part / "diffusion_pytorch_model.safetensors").touch()
    return directory


def test_missing_weights_are_one_line_that_says_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as refusal:
        require(SD3_MEDIUM, PARTS)
    for word in ("no transformer/ and no vae/", "hf download stabilityai/", "15 GB", "network.model=", "69 GB"):
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)
    directory = files_of(tmp_path / "sd3")
    assert require(str(directory), PARTS) == directory
    (directory / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no vae/ on this machine"):
        require(str(directory), PARTS)


def test_a_sharded_part_is_whole_only_with_all_its_shards(tmp_path: Path) -> None:
    weight_map = dict(zip("ab", SHARDS, strict=True))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / SHARDS[0]).touch()
    assert weight_files(tmp_path) == []
    (tmp_path / SHARDS[1]).touch()
    assert weight_files(tmp_path) == [tmp_path / name for name in SHARDS]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_or_config_is_one_line(content: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(UserError, match=r"not JSON|must be a JSON object|tells no weight_map") as refusal:
        weight_files(tmp_path)
    assert str(index) in str(refusal.value) and "\n" not in str(refusal.value)
    config = files_of(tmp_path / "sd3") / "transformer" / "config.json"
    config.write_text(content[:1])
    with pytest.raises(UserError, match="not JSON"):
        architecture(str(tmp_path / "sd3"))


def test_a_fingerprint_knows_weights_and_not_files(tmp_path: Path) -> None:
    a, b = torch.randn(50, 50), torch.randn(7)
    save_file({"a": a, "b": b}, tmp_path / "whole.safetensors", metadata={"made": "today"})
    save_file({"a": a}, tmp_path / "part1.safetensors")
    save_file({"b": b}, tmp_path / "part2.safetensors")
    whole = fingerprint([tmp_path / "whole.safetensors"])
    assert whole == fingerprint([tmp_path / "part1.safetensors", tmp_path / "part2.safetensors"])
    for name, changed in (
        ("value", {"a": a, "b": b + 1e-6}),
        ("type", {"a": a, "b": b.half()}),
        ("name", {"c": a, "b": b}),
    ):
        save_file(changed, tmp_path / f"{name}.safetensors")
        assert fingerprint([tmp_path / f"{name}.safetensors"]) != whole
    assert read_header(tmp_path / "whole.safetensors")[1] == {"made": "today"}
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="is cut short"):
        fingerprint([tmp_path / "cut.safetensors"])


def with_header(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "no header": b"garbage, garbage",
    "a list": with_header([TENSOR]),
    "no tensor": with_header({"__metadata__": {}}),
    "no object": with_header({"a": "F32"}),
    "one offset": with_header({"a": TENSOR | {"data_offsets": [0]}}) + bytes(4),
    "words": with_header({"a": TENSOR | {"data_offsets": ["a", "b"]}}) + bytes(4),
    "no type": with_header({"a": {"shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
    "other metadata": with_header({"a": TENSOR, "__metadata__": 1}) + bytes(4),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_header_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(with_header({"a": TENSOR}) + bytes(4))
    fingerprint([file])
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file} is no \.safetensors file; remove it and make it again$"):
        fingerprint([file])


def billions(build: Callable[[], Any]) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters()) / 1e9


def test_what_lies_beside_the_transformer_is_counted() -> None:
    from diffusers import AutoencoderKL
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
    assert sum(map(billions, parts)) == pytest.approx(BESIDE, abs=0.01)
