"""Samples by index are the same in any range, in memory and in folders; samples and images that are wrong are named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from geneval_files import example_prompts
from PIL import Image

from fgm.data.images import Digits
from fgm.data.pixels import dequantise, quantise
from fgm.data.shapes.dataset import Shapes
from fgm.evaluation.geneval.folder import export_geneval, read_layout
from fgm.evaluation.sampling import Sampler, balanced, draw_samples, random_conditions
from fgm.evaluation.sources import DatasetSource, FolderSource, SamplerSource, SampleSource, export_images
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

CPU = torch.device("cpu")
PROMPTS = example_prompts(2)


class Mixer(torch.nn.Module):
    """A sampler whose last bits might depend on the batch."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        d = int(np.prod(shape))
        self.weight = torch.nn.Parameter(torch.randn(d, d, generator=keyed_generator("mixer", index=0)) / d**0.5)

    def forward(self, z: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        x = (z.flatten(1) @ self.weight).unflatten(1, self.shape)
        return x if condition is None else x + condition.float().view(-1, *[1] * len(self.shape)) / 20


def sampler(n: int = 25, shape: tuple[int, ...] = (1, 8, 8), batch: int = 10, classes: int = 10) -> SamplerSource:
    return SamplerSource(Sampler("mixer", Mixer(shape), 1, "ema"), 7, n, shape, balanced(classes), CPU, batch)


def exported(source: SampleSource, out: Path, layout: str = "png") -> Path:
    export_images(source, out, layout, batch=10)
    return out


def everything(source: SampleSource) -> torch.Tensor:
    return source.take(range(source.n)).x


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize("layout", ["png", "edm"])
def test_export_roundtrip_is_bit_exact(layout: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    source = sampler(shape=shape)
    folder = FolderSource(exported(source, tmp_path / "out", layout), recursive=layout == "edm")
    for indices in (range(25), range(3, 4), range(10, 20)):
        there, here = folder.take(indices), source.take(range(25))
        assert torch.equal(there.x, here.x[indices.start : indices.stop])
        assert torch.equal(there.labels, here.labels[indices.start : indices.stop])
    assert folder.shape == shape and folder.weights == "folder" and folder.nfe == 0


def test_sampler_source_is_draw_samples_quantised() -> None:
    source = sampler()
    whole, labels = draw_samples(source.sampler, 7, 25, (1, 8, 8), balanced(10).conditions, CPU, batch=10)
    for indices in (range(25), range(10, 25), range(20, 25)):
        samples = source.take(indices)
        assert torch.equal(samples.x, quantise(whole[indices.start : indices.stop]))
        assert torch.equal(samples.labels, labels[indices.start : indices.stop])


def test_conditions_are_a_function_of_seed_and_index() -> None:
    class Words(torch.nn.Module):
        def forward(self, z: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return dequantise(tokens.to(torch.uint8)).view(-1, 1, 3, 4)

    one, other = (
        SamplerSource(Sampler("words", Words(), 1, "ema"), s, 6, (1, 3, 4), random_conditions(Shapes(), s), CPU, 3)
        for s in (1, 2)
    )
    assert torch.equal(one.take(range(3, 6)).x, everything(one)[3:]) and one.take(range(6)).labels is None
    assert everything(one).flatten(1).unique(dim=0).shape[0] > 3
    assert not torch.equal(everything(one), everything(other))


def test_points_are_not_quantised() -> None:
    source = sampler(shape=(2,), classes=0)
    samples = source.take(range(25))
    assert samples.x.dtype == torch.float32 and samples.labels is None
    assert torch.equal(samples.x, draw_samples(source.sampler, 7, 25, (2,), balanced(0).conditions, CPU, batch=10)[0])


def test_layouts_have_the_names_of_other_tools(tmp_path: Path) -> None:
    exported(sampler(), tmp_path / "edm", "edm")
    assert (tmp_path / "edm" / "00000" / "img00000024.png").exists()
    labels_of_files = json.loads((tmp_path / "edm" / "dataset.json").read_text())["labels"]
    assert labels_of_files[13] == ["00000/img00000013.png", 3] and len(labels_of_files) == 25
    exported(sampler(classes=0), tmp_path / "png")
    assert (tmp_path / "png" / "000024.png").exists() and len(list((tmp_path / "png").glob("*.png"))) == 25
    assert json.loads((tmp_path / "png" / "dataset.json").read_text()) == {"labels": None}
    assert FolderSource(tmp_path / "png").labels is None


def broken_sampler(at: list[int], value: float) -> SamplerSource:
    source = sampler()
    forward = source.sampler.model.forward

    def broken(z: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        x = forward(z, condition)
        for i in at:
            x[i, 0, 2, 2] = value
        return x

    source.sampler.model.forward = broken  # type: ignore[method-assign]
    return source


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_a_user_error(value: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mixer: 2 of the samples 20 to 24 are not finite, number 21 first") as refusal:
        broken_sampler([1, 3], value).take(range(20, 25))
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="not finite"):
        exported(broken_sampler([1], value), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_dataset_source_is_the_split_quantised() -> None:
    source = DatasetSource.of_data(Digits(), "digits", "test", None)
    images, labels = Digits().split["test"]
    taken = source.take(range(5, 9))
    assert source.n == len(images) and source.weights == "real"
    assert torch.equal(taken.x, quantise(images[5:9])) and torch.equal(taken.labels, labels[5:9])
    assert source.describe() != DatasetSource.of_data(Digits(), "digits", "train", len(images)).describe()


def test_unlimited_set_is_drawn_image_by_image() -> None:
    few, more = (DatasetSource.of_data(Shapes(), "shapes", "train", n) for n in (2, 3))
    assert torch.equal(everything(few), everything(more)[:2]) and everything(few).shape == (2, 3, 32, 32)


def test_a_dataset_in_memory_is_measured_by_its_bytes() -> None:
    images = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
    assert torch.equal(everything(DatasetSource(images, None, "ramp")), quantise(images))


def test_geneval_layout_roundtrip_keeps_the_order(tmp_path: Path) -> None:
    source = sampler(n=2 * len(PROMPTS), classes=0)
    export_geneval(source, tmp_path / "out", PROMPTS, per_prompt=2, batch=10)
    layout = read_layout(tmp_path / "out", PROMPTS, 2)
    pixels = torch.stack([torch.tensor(sample.pixels()).movedim(-1, 0) for sample in layout])
    assert torch.equal(pixels, everything(source).expand(-1, 3, -1, -1))


def test_export_is_atomic_and_needs_an_empty_folder(tmp_path: Path) -> None:
    exported(sampler(), tmp_path / "out")
    with pytest.raises(UserError, match="is there already, and is not written to"):
        exported(sampler(), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    exported(sampler(), tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


# folders


def noise_folder(out: Path, layout: str = "png") -> Path:
    """25 grey images of 8 x 8 with labels."""
    images = torch.randint(256, (25, 1, 8, 8), generator=keyed_generator("folder", index=0), dtype=torch.uint8)
    export_images(DatasetSource(images, torch.arange(25) % 10, "noise"), out, layout, batch=10)
    return out


def png(path: Path, mode: str = "L", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new(mode, size).save(path)
    return path


def test_description_depends_on_pixels_and_labels_only(tmp_path: Path) -> None:
    one = FolderSource(noise_folder(tmp_path / "a"))
    same = FolderSource(noise_folder(tmp_path / "b", "edm"), recursive=True)
    assert one.describe() == same.describe() != FolderSource(tmp_path / "a", n=24).describe()
    (tmp_path / "a" / "dataset.json").unlink()
    assert FolderSource(tmp_path / "a").describe() != one.describe()


def corrupt(folder: Path) -> str:
    content = bytearray((folder / "000013.png").read_bytes())
    content[50] ^= 255
    (folder / "000013.png").write_bytes(bytes(content))
    return r"000013\.png: damaged PNG \(does not decode\)"


def another_size(folder: Path) -> str:
    png(folder / "000013.png", size=(9, 8))
    return r"000013\.png: is grey 9 x 8, but 000000\.png is grey 8 x 8"


def colour_among_grey(folder: Path) -> str:
    png(folder / "000013.png", "RGB")
    return r"000013\.png: is RGB 8 x 8, but 000000\.png is grey 8 x 8"


@pytest.mark.parametrize("damage", [corrupt, another_size, colour_among_grey], ids=lambda damage: damage.__name__)
def test_bad_image_is_a_user_error_that_names_it(damage: Callable[[Path], str], tmp_path: Path) -> None:
    message = damage(noise_folder(tmp_path / "out"))
    with pytest.raises(UserError, match=message) as refusal:
        FolderSource(tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_too_few_images_are_a_user_error(tmp_path: Path) -> None:
    noise_folder(tmp_path / "out")
    with pytest.raises(UserError, match="out: 25 PNGs, but n = 26 needed"):
        FolderSource(tmp_path / "out", n=26)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: 0 PNGs, but at least one needed"):
        FolderSource(tmp_path / "none")


def test_subfolders_need_recursive(tmp_path: Path) -> None:
    out = noise_folder(tmp_path / "out", "edm")
    with pytest.raises(UserError, match="PNGs only in subfolders; give recursive=true"):
        FolderSource(out)
    assert FolderSource(out, recursive=True).n == 25
    with pytest.raises(UserError, match="nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")


def test_first_n_files_in_sorted_order_are_read(tmp_path: Path) -> None:
    for value in (3, 1, 2):
        Image.new("L", (4, 4), value).save(tmp_path / f"{value}.png")
    assert FolderSource(tmp_path, n=2).take(range(2)).x[:, 0, 0, 0].tolist() == [1, 2]
