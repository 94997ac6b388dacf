"""Files of latents: draws are their rows, and damaged files are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_sd3 import SIZE, vae
from torch import Tensor

from fgm.data.autoencoder import Autoencoder
from fgm.data.latents import Latents
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator


def latents(path: Path, **changes: Any) -> Tensor:
    """Two files of 5 and 3 latents under path, float16, with conditions; file 1 with changes."""
    x = torch.randn(8, 4, 2, 2, generator=keyed_generator("latents", index=0)).half()
    path.mkdir()
    numbers = torch.arange(8)[:, None]
    parts = [{"latents": x[cut], "conditions": numbers[cut]} for cut in (slice(5), slice(5, 8))]
    parts[1] |= changes
    for i, part in enumerate(parts):
        save_file({name: tensor.contiguous() for name, tensor in part.items()}, path / f"{i}.safetensors")
    return x


def test_latents_of_several_files_are_drawn_with_their_conditions(tmp_path: Path) -> None:
    x = latents(tmp_path / "cache")
    data = Latents(str(tmp_path / "cache"))
    drawn, conditions = data.draw(800, keyed_generator("draw", index=0))
    assert conditions is not None and drawn.dtype == torch.float32 and data.shape == (4, 2, 2)
    assert torch.equal(drawn, x[conditions[:, 0]].float())
    counts = conditions.flatten().bincount(minlength=8)
    assert counts.min() > 60 and counts.max() < 140
    assert torch.equal(data.rows("conditions", torch.arange(8))[:, 0], torch.arange(8))
    one = Latents(str(tmp_path / "cache" / "1.safetensors"))
    assert torch.equal(one.rows("latents", torch.arange(3)), x[5:])


def test_encoded_images_are_latents(tmp_path: Path) -> None:
    vae().save_pretrained(tmp_path / "model" / "vae")
    autoencoder, images = Autoencoder(str(tmp_path / "model")), torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    z = autoencoder.encode(images)
    save_file({"latents": z.cpu().contiguous()}, tmp_path / "cache.safetensors")
    drawn, conditions = Latents(str(tmp_path / "cache.safetensors")).draw(20, keyed_generator("draw", index=0))
    assert conditions is None and drawn.shape[1:] == z.shape[1:] == (4, 4, 4)
    assert torch.equal(drawn.unique(dim=0), z.unique(dim=0))


ONES = torch.ones(3, 4, 2, 2)


BROKEN = {
    "nan": ({"latents": ONES * float("nan")}, r"1.safetensors: 3 latents are not finite, the first is 0; encode"),
    "inf": (
        {"latents": ONES.index_fill(0, torch.tensor(2), float("inf"))},
        r"1 latents are not finite, the first is 2;",
    ),
    "odd": (
        {"latents": ONES.repeat(1, 1, 2, 1)},
        r"latents \(3, 4, 4, 2\) float32, but 0.safetensors: ",
    ),
    "flat": ({"latents": ONES[..., 0, 0]}, r"needs float `latents` .* has .*latents \(3, 4\) float32"),
    "bytes": ({"latents": ONES.byte()}, r"height, width\); has .* uint8"),
    "short": ({"conditions": torch.ones(2, 1, dtype=torch.int64)}, r"must be int64 with a row for each latent"),
}


@pytest.mark.parametrize("changes, message", BROKEN.values(), ids=BROKEN.keys())
def test_broken_latents_are_refused_in_one_line(changes: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    latents(tmp_path / "cache", **changes)
    with pytest.raises(UserError, match=message) as refusal:
        Latents(str(tmp_path / "cache"))
    assert "\n" not in str(refusal.value)


def test_missing_and_truncated_caches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no safetensors files of latents"):
        Latents(str(tmp_path))
    latents(tmp_path / "cache")
    file = tmp_path / "cache" / "0.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"0.safetensors: damaged safetensors file"):
        Latents(str(tmp_path / "cache"))
