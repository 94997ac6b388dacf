"""Labelled images, in every format: draws are the files' images with their labels, and never flipped in the split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import write_cifar10, write_fashion, write_folder, write_parquet, write_zip
from torch import Tensor

from fgm.data import images
from fgm.data.folders import ImageFolder, ImageZip
from fgm.data.images import CachedDataset, Digits
from fgm.data.pixels import dequantise, quantise
from fgm.data.published import CIFAR10, CIFAR10Parquet, FashionMNIST
from fgm.data.shapes.dataset import Shapes
from fgm.utils.random import keyed_generator

TEN = torch.arange(100) % 10
Case = tuple[Any, Tensor, Tensor]  # a set, its training images and their labels


def fashion(tmp: Path, **options: Any) -> Case:
    pixels = write_fashion(tmp / "f")
    return FashionMNIST(str(tmp / "f"), **options), pixels[:, None], TEN[:40]


def cifar10(tmp: Path, archive: bool = False, **options: Any) -> Case:
    pixels = write_cifar10(tmp / "c", archive=archive)
    return CIFAR10(str(tmp / "c"), **options), pixels, TEN[:20].repeat(5)


def parquet(tmp: Path, inner: str = "", **options: Any) -> Case:
    pixels = write_parquet(tmp / "p")
    return CIFAR10Parquet(str(tmp / "p" / inner), **options), pixels, torch.tensor([0, 1, 2, 3, 4, 9] * 2)


def zipped(tmp: Path, classes: bool = True, **options: Any) -> Case:
    pixels = write_zip(tmp / "z.zip")
    return ImageZip(str(tmp / "z.zip"), num_classes=1000 * classes, **options), pixels, torch.arange(12)


def folder(tmp: Path, classes: bool = True, **options: Any) -> Case:
    pixels = write_folder(tmp / "pngs", labelled=classes)
    return ImageFolder(str(tmp / "pngs"), **options), pixels, torch.arange(8)


SETS: dict[str, Callable[..., Case]] = {
    "fashion": fashion, "cifar10": cifar10, "cifar10 tar": lambda tmp, **o: cifar10(tmp, True, **o),
    "parquet": parquet, "parquet, inner folder": lambda tmp, **o: parquet(tmp, "plain_text", **o),
    "zip": zipped, "folder": folder,
}  # fmt: skip
every_set = pytest.mark.parametrize("make", SETS.values(), ids=SETS.keys())


def matches(x: Tensor, pixels: Tensor) -> Tensor:
    """Which of pixels each x is, bool (len(x), len(pixels))."""
    return (x[:, None] == dequantise(pixels)).flatten(2).all(2)


@every_set
def test_draws_are_uniform_over_the_files_images_with_their_labels(make: Callable[..., Case], tmp_path: Path) -> None:
    data, pixels, labels = make(tmp_path, flips=False)
    x, y = data.draw(800, keyed_generator("draw", index=0))
    which, mean = matches(x, pixels), 800 / len(pixels)
    assert which.sum(1).eq(1).all() and (which.sum(0) - mean).abs().max() < 4 * mean**0.5
    assert data.shape == pixels.shape[1:] and torch.equal(y, labels[which.int().argmax(1)])
    assert torch.equal(x, data.draw(800, keyed_generator("draw", index=0))[0])
    assert data.std == pytest.approx(dequantise(pixels).std().item(), rel=1e-5)
    conditions = data.conditions(50, keyed_generator("y", index=0))
    assert conditions.dtype == torch.int64 and conditions.min() >= 0 and conditions.max() < data.num_classes
    assert data.num_classes > labels.max() and data.reference(3, keyed_generator("r", index=0)).shape[1:] == data.shape


@every_set
def test_flips_mirror_half_of_the_draws_and_none_of_the_split(make: Callable[..., Case], tmp_path: Path) -> None:
    data, pixels, _ = make(tmp_path, flips=True)
    x, _ = data.draw(400, keyed_generator("draw", index=0))
    straight, mirrored = (matches(x, y).any(1) for y in (pixels, pixels.flip(-1)))
    assert (straight | mirrored).all() and 150 < straight.sum() < 250  # 200, standard deviation 10
    assert torch.equal(data.split["train"][0], pixels)


@every_set
def test_an_unconditional_set_has_no_labels(make: Callable[..., Case], tmp_path: Path) -> None:
    data, noise = make(tmp_path, classes=False)[0], keyed_generator("draw", index=0)
    assert data.num_classes == 0 and data.draw(3, noise)[1] is None and data.conditions(3, noise) is None
    assert data.split["train"][1] is None


def test_a_folders_reference_shows_no_image_twice(tmp_path: Path) -> None:
    assert len(folder(tmp_path)[0].reference(100, keyed_generator("r", index=0)).unique(dim=0)) == 8


def test_references_go_class_by_class_through_the_test_split(tmp_path: Path) -> None:
    for data in (fashion(tmp_path)[0], cifar10(tmp_path)[0], Digits()):
        pixels, labels = data.split["test"]
        shown = data.reference(15, keyed_generator("r", index=0))
        which = matches(shown, pixels)
        assert which.any(1).all() and len(shown.unique(dim=0)) == 15
        assert torch.equal(labels[which.int().argmax(1)], TEN[:15])


def test_the_digit_split_is_stratified_and_disjoint() -> None:
    split = Digits().split
    (train, train_labels), (test, test_labels) = split["train"], split["test"]
    assert train_labels is not None and test_labels is not None and len(train) + len(test) == 1797
    assert (train_labels.bincount() - 4 * test_labels.bincount()).abs().max() <= 4
    assert torch.cdist(train.flatten(1), test.flatten(1)).min() > 0


@pytest.mark.parametrize("n", [8, 11])
def test_a_cached_dataset_draws_n_examples_of_its_data_with_their_captions(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CACHE_CHUNK", 4)
    data, cached = Shapes(), CachedDataset(Shapes(), n=n)
    parts = [data.draw(min(4, n - i), keyed_generator(0, "pool", index=i // 4)) for i in range(0, n, 4)]
    pixels, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
    x, y = cached.draw(40 * n, keyed_generator("draw", index=0))
    which = matches(x, quantise(pixels))
    assert which.sum(1).eq(1).all() and which.any(0).all() and torch.equal(y, tokens[which.int().argmax(1)])
    assert cached.conditions(5, keyed_generator("y", index=0)).shape == (5, tokens.shape[1])
    assert cached.split is None and cached.prompts is cached.data
