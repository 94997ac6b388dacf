"""Real images from a folder, latents from a cache: what is drawn is what lies there, and what is broken is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fgm.data.encoded import EncodedImages
from fgm.data.images import ImageFolder
from fgm.data.latents import Latents
from fgm.errors import Refusal
from fgm.evaluation.png import encode
from fgm.evaluation.quantise import dequantise
from fgm.streams import stream


def folder(directory: Path, labels: list[int] | None = None) -> Tensor:
    """Eight RGB images of 4 x 6 in directory, uint8."""
    images = torch.randint(256, (8, 3, 4, 6), generator=stream("images", index=0), dtype=torch.uint8)
    directory.mkdir()
    for i, image in enumerate(images):
        (directory / f"{i}.png").write_bytes(encode(image))
    if labels:
        told = [[f"{i}.png", label] for i, label in enumerate(labels)]
        (directory / "dataset.json").write_text(json.dumps({"labels": told}))
    return images


def latents(path: Path, **changes: Any) -> Tensor:
    """Two files of 5 and 3 latents under path, float16, with conditions; file 1 with changes."""
    x = torch.randn(8, 4, 2, 2, generator=stream("latents", index=0)).half()
    path.mkdir()
    numbers = torch.arange(8)[:, None]
    parts = [{"latents": x[cut], "conditions": numbers[cut]} for cut in (slice(5), slice(5, 8))]
    parts[1] |= changes
    for i, part in enumerate(parts):
        save_file({name: tensor.contiguous() for name, tensor in part.items()}, path / f"{i}.safetensors")
    return x


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 0, 1, 2, 0, 4]])
def test_a_folders_images_are_drawn_with_their_labels_evenly(labels: list[int] | None, tmp_path: Path) -> None:
    images = folder(tmp_path / "pngs", labels)
    data = ImageFolder(str(tmp_path / "pngs"))
    assert (data.shape, data.num_classes) == ((3, 4, 6), 5 if labels else 0)
    x, y = data.draw(800, stream("draw", index=0))
    which = (x[:, None] == dequantise(images)).flatten(2).all(2)
    assert which.sum(1).eq(1).all()
    assert which.sum(0).min() > 60 and which.sum(0).max() < 140  # 100 each, standard deviation 9.4
    if labels:
        assert y is not None and torch.equal(y, torch.tensor(labels)[which.int().argmax(1)])
    else:
        assert y is None and data.conditions(3, stream("draw", index=0)) is None
    assert torch.equal(x, data.draw(800, stream("draw", index=0))[0])
    assert len(data.reference(100, stream("draw", index=0)).unique(dim=0)) == 8
    assert data.std == pytest.approx(float(dequantise(images).std()))


def test_flips_mirror_half_of_a_folders_draws_and_never_what_distances_are_taken_from(tmp_path: Path) -> None:
    images = folder(tmp_path / "pngs")
    data = ImageFolder(str(tmp_path / "pngs"), flips=True)
    x, _ = data.draw(400, stream("draw", index=0))
    straight, mirrored = ((x[:, None] == dequantise(y)).flatten(2).all(2).any(1) for y in (images, images.flip(-1)))
    assert (straight | mirrored).all() and 150 < straight.sum() < 250  # 200, standard deviation 10
    assert torch.equal(data.split["train"][0], images) and data.split["train"][1] is None


def test_latents_of_several_files_are_drawn_with_their_conditions(tmp_path: Path) -> None:
    x = latents(tmp_path / "cache")
    data = Latents(str(tmp_path / "cache"))
    drawn, conditions = data.draw(800, stream("draw", index=0))
    assert conditions is not None and drawn.dtype == torch.float32 and data.shape == (4, 2, 2)
    assert torch.equal(drawn, x[conditions[:, 0]].float())
    counts = conditions.flatten().bincount(minlength=8)
    assert counts.min() > 60 and counts.max() < 140
    assert torch.equal(data.rows("conditions", torch.arange(8))[:, 0], torch.arange(8))
    one = Latents(str(tmp_path / "cache" / "1.safetensors"))
    assert torch.equal(one.rows("latents", torch.arange(3)), x[5:])


ONES = torch.ones(3, 4, 2, 2)


class Halves:
    """An encoder: the mean of neighbouring columns."""

    def encode(self, x: Tensor) -> Tensor:
        return (x[..., ::2] + x[..., 1::2]) / 2


def test_a_folder_is_encoded_whole_and_keeps_its_labels(tmp_path: Path) -> None:
    images = dequantise(folder(tmp_path / "pngs", [0, 1, 2, 3, 4, 5, 6, 7]))
    data = EncodedImages(ImageFolder(str(tmp_path / "pngs")), Halves())
    x, y = data.draw(40, stream("draw", index=0))
    assert y is not None and data.shape == (3, 4, 3) and len(y.unique()) > 4
    assert torch.equal(x, Halves().encode(images)[y])
    assert torch.equal(y, ImageFolder(str(tmp_path / "pngs")).draw(40, stream("draw", index=0))[1])


def test_a_latent_that_is_not_finite_is_refused_by_its_images_name(tmp_path: Path, monkeypatch: Any) -> None:
    folder(tmp_path / "pngs")
    data = EncodedImages(ImageFolder(str(tmp_path / "pngs")), Halves())
    broken = torch.ones(8, 1, 1, 1).index_fill(0, torch.tensor(5), float("nan"))
    monkeypatch.setattr(data.encoder, "encode", lambda x: x * broken)
    with pytest.raises(Refusal, match=r"5.png: its latent is not finite"):
        data.draw(1, stream("draw", index=0))


BROKEN = {
    "nan": ({"latents": ONES * float("nan")}, r"1.safetensors: latent 0 is not finite, one of 3; encode"),
    "inf": ({"latents": ONES.index_fill(0, torch.tensor(2), float("inf"))}, r"latent 2 is not finite, one of 1;"),
    "odd": (
        {"latents": ONES.repeat(1, 1, 2, 1)},
        r"has .*latents \(3, 4, 4, 2\) float32, and .* all files must be alike",
    ),
    "flat": ({"latents": ONES[..., 0, 0]}, r"needs a tensor `latents`, .* it has .*latents \(3, 4\) float32"),
    "bytes": ({"latents": ONES.byte()}, r"height, width\) and float; it has .* uint8"),
    "short": ({"conditions": torch.ones(2, 1, dtype=torch.int64)}, r"must be int64 with a row for each latent"),
}


@pytest.mark.parametrize("changes, message", BROKEN.values(), ids=BROKEN.keys())
def test_broken_latents_are_refused_in_one_line(changes: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    latents(tmp_path / "cache", **changes)
    with pytest.raises(Refusal, match=message) as refusal:
        Latents(str(tmp_path / "cache"))
    assert "\n" not in str(refusal.value)


def test_missing_and_truncated_caches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="holds no safetensors files of latents"):
        Latents(str(tmp_path))
    latents(tmp_path / "cache")
    file = tmp_path / "cache" / "0.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(Refusal, match=r"0.safetensors: is no whole safetensors file"):
        Latents(str(tmp_path / "cache"))
    with pytest.raises(Refusal, match="is no folder"):
        ImageFolder(str(tmp_path / "nowhere"))
