"""Labelled images, in every format that they come in: what is drawn is what lies there, what is broken is one line."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import Code, bytes_of, idx, write_cifar10, write_fashion, write_folder, write_parquet, write_zip
from torch import Tensor

from fgm.data.cifar10 import Cifar10
from fgm.data.digits import Digits
from fgm.data.fashion import Fashion
from fgm.data.images import ImageFolder
from fgm.data.parquet import Cifar10Parquet
from fgm.data.pixels.quantise import dequantise
from fgm.data.zipped import ZippedImages
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator

TEN = torch.arange(100) % 10


def fashion(tmp: Path, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_fashion(tmp / "f")
    return Fashion(str(tmp / "f"), **options), images[:, None], TEN[:40]


def cifar10(tmp: Path, archive: bool = False, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_cifar10(tmp / "c", archive=archive)
    return Cifar10(str(tmp / "c"), **options), images, TEN[:20].repeat(5)


def parquet(tmp: Path, inner: str = "", **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_parquet(tmp / "p")
    return Cifar10Parquet(str(tmp / "p" / inner), **options), images, torch.tensor([0, 1, 2, 3, 4, 9] * 2)


def zipped(tmp: Path, classes: bool = True, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_zip(tmp / "z.zip")
    return ZippedImages(str(tmp / "z.zip"), num_classes=1000 * classes, **options), images, torch.arange(12)


def folder(tmp: Path, classes: bool = True, **options: Any) -> tuple[Any, Tensor, Tensor]:
    images = write_folder(tmp / "pngs", labelled=classes)
    return ImageFolder(str(tmp / "pngs"), **options), images, torch.arange(8)


Make = Callable[..., tuple[Any, Tensor, Tensor]]  # the set, its training images and their labels
SETS: dict[str, Make] = {
    "fashion": fashion, "cifar10": cifar10, "cifar10 tar": lambda tmp, **o: cifar10(tmp, True, **o),
    "parquet": parquet, "parquet, inner folder": lambda tmp, **o: parquet(tmp, "plain_text", **o),
    "zip": zipped, "folder": folder,
}  # fmt: skip
every_set = pytest.mark.parametrize("make", SETS.values(), ids=SETS.keys())


@every_set
def test_draws_are_the_files_images_with_their_labels_and_even(make: Make, tmp_path: Path) -> None:
    data, images, labels = make(tmp_path, flips=False)
    x, y = data.draw(800, keyed_generator("draw", index=0))
    which = (x[:, None] == dequantise(images)).flatten(2).all(2)
    mean = 800 / len(images)
    assert which.sum(1).eq(1).all() and (which.sum(0) - mean).abs().max() < 4 * mean**0.5
    assert data.shape == images.shape[1:] and torch.equal(y, labels[which.int().argmax(1)])
    assert torch.equal(x, data.draw(800, keyed_generator("draw", index=0))[0])
    assert data.std == pytest.approx(dequantise(images).std().item(), rel=1e-5)
    asked = data.conditions(50, keyed_generator("y", index=0))
    assert asked.dtype == torch.int64 and asked.min() >= 0 and asked.max() < data.num_classes
    assert data.num_classes > labels.max() and data.reference(3, keyed_generator("r", index=0)).shape == (
        3,
        *data.shape,
    )


@every_set
def test_flips_mirror_half_of_the_draws_and_never_the_split(make: Make, tmp_path: Path) -> None:
    data, images, _ = make(tmp_path, flips=True)
    x, _ = data.draw(400, keyed_generator("draw", index=0))
    straight, mirrored = ((x[:, None] == dequantise(y)).flatten(2).all(2).any(1) for y in (images, images.flip(-1)))
    assert (straight | mirrored).all() and 150 < straight.sum() < 250  # 200, standard deviation 10
    assert torch.equal(data.split["train"][0], images)


@every_set
def test_a_set_without_classes_tells_no_labels(make: Make, tmp_path: Path) -> None:
    data, noise = make(tmp_path, classes=False)[0], keyed_generator("draw", index=0)
    assert data.num_classes == 0 and data.draw(3, noise)[1] is None and data.conditions(3, noise) is None
    assert data.split["train"][1] is None


def test_a_folders_reference_shows_none_twice_while_there_are_others(tmp_path: Path) -> None:
    assert len(folder(tmp_path)[0].reference(100, keyed_generator("r", index=0)).unique(dim=0)) == 8


def test_references_go_class_by_class_through_what_is_held_out(tmp_path: Path) -> None:
    for data in (fashion(tmp_path)[0], cifar10(tmp_path)[0], Digits()):
        images, labels = data.split["test"]
        shown = data.reference(15, keyed_generator("r", index=0))
        which = (shown[:, None] == dequantise(images)).flatten(2).all(2)
        assert which.any(1).all() and len(shown.unique(dim=0)) == 15
        assert torch.equal(labels[which.int().argmax(1)], TEN[:15])


def cut(path: Path, at: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


def damaged_fashion(tmp: Path, change: Callable[[Path], Any]) -> Fashion:
    write_fashion(tmp / "f")
    change(tmp / "f")
    return Fashion(str(tmp / "f"))


def cifar10_with(tmp: Path, **changes: Any) -> Cifar10:
    write_cifar10(tmp / "c", **changes)
    return Cifar10(str(tmp / "c"))


def cut_tar(tmp: Path) -> Cifar10:
    write_cifar10(tmp / "c", archive=True)
    cut(tmp / "c" / "cifar-10-python.tar.gz")
    return Cifar10(str(tmp / "c"))


def parquet_with(tmp: Path, change: Callable[[Path], Any] | None = None, **changes: Any) -> Cifar10Parquet:
    write_parquet(tmp / "p", **changes)
    if change:
        change(tmp / "p" / "plain_text" / "train-00001-of-00002.parquet")
    return Cifar10Parquet(str(tmp / "p"))


def zip_with(tmp: Path, keep: float = 1.0, **changes: Any) -> ZippedImages:
    write_zip(tmp / "z.zip", **changes)
    cut(tmp / "z.zip", keep)
    return ZippedImages(str(tmp / "z.zip"))


CUT_IDX = idx(bytes_of(9, 28, 28))[:-5]
TRAIN = "train-images-idx3-ubyte.gz"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (lambda tmp: Fashion(str(tmp)), "no fashion-mnist: train-images-idx3-ubyte.gz is not in"),
    "gzip cut short": (lambda tmp: damaged_fashion(tmp, lambda d: cut(d / TRAIN)), "is no whole gzip file"),
    "IDX cut short": (
        lambda tmp: damaged_fashion(tmp, lambda d: (d / TRAIN).write_bytes(gzip.compress(CUT_IDX))),
        "is cut short: 7051 bytes, and its header promises 7056",
    ),
    "no IDX": (
        lambda tmp: damaged_fashion(tmp, lambda d: (d / TRAIN).write_bytes(gzip.compress(b"hello, hello"))),
        "is no IDX file",
    ),
    "another size": (
        lambda tmp: damaged_fashion(tmp, lambda d: write_fashion(d, side=32)), "images of (32, 32), not of (28, 28)"
    ),
    "label 11": (
        lambda tmp: damaged_fashion(tmp, lambda d: write_fashion(d, labels=torch.full((40,), 11, dtype=torch.uint8))),
        "label 0 is 11, and must lie in 0 to 9",
    ),
    "too few labels": (
        lambda tmp: damaged_fashion(tmp, lambda d: write_fashion(d, labels=torch.zeros(39, dtype=torch.uint8))),
        "holds 39 labels, and there are 40 images",
    ),
    "no CIFAR-10": (lambda tmp: Cifar10(str(tmp)), "no cifar-10: cifar-10-python.tar.gz is not in"),
    "tar cut short": (cut_tar, "is no whole CIFAR-10"),
    "labels out of range": (
        lambda tmp: cifar10_with(tmp, labels=[0] * 19 + [10]), "label 19 is 10, and must lie in 0 to 9"
    ),
    "images of 28": (
        lambda tmp: cifar10_with(tmp, data=bytes_of(20, 2352).numpy()), "have (2352,) numbers, and 32 x 32 RGB has 3072"
    ),
    "no bytes": (lambda tmp: cifar10_with(tmp, data=[1, 2]), "needs data, uint8 (n, 3072)"),
    "no parquet": (
        lambda tmp: Cifar10Parquet(str(tmp)), "needs train-00000-of-00001.parquet and has 0: run hf download"
    ),
    "parquet missing": (lambda tmp: parquet_with(tmp, Path.unlink), "needs 2 files train-*.parquet and has 1"),
    "parquet cut short": (
        lambda tmp: parquet_with(tmp, cut), "is no parquet file of img (bytes, path) and label"
    ),
    "parquet's label 10": (lambda tmp: parquet_with(tmp, label=10), "label 5 is 10, and must lie in 0 to 9"),
    "parquet of 28": (
        lambda tmp: parquet_with(tmp, size=28), "row 0 is of shape (3, 28, 28), and should be of (3, 32, 32)"
    ),
    "no folder": (lambda tmp: ImageFolder(str(tmp / "nowhere")), "is no folder: it should hold PNGs"),
    "no zip": (lambda tmp: zip_with(tmp, 0.5), "is no whole zip"),
    "odd image": (lambda tmp: zip_with(tmp, odd=0), "is of shape (3, 63, 64), and should be of (3, 64, 64)"),
    "CIFAR-10 as ImageNet": (lambda tmp: zip_with(tmp, size=32), "is of shape (3, 32, 32), and should be"),
    "label 1000": (
        lambda tmp: zip_with(tmp, labels=[[f"00000/img{i:08d}.png", 1000] for i in range(12)]), "label 0 is 1000"
    ),
    "negative label": (lambda tmp: cifar10_with(tmp, labels=[0] * 19 + [-1]), "label 19 is -1, and must lie in 0 to 9"),
    "unlabelled": (lambda tmp: zip_with(tmp, labels=None), "tells no labels; give data.num_classes=0"),
    "labels of others": (
        lambda tmp: zip_with(tmp, labels=[["a.png", 1]]), "tells no label of 00000/img00000000.png; add it, or give"
    ),
    "labels of no form": (lambda tmp: zip_with(tmp, labels=[1]), "labels must be a list of [name, whole number]"),
}  # fmt: skip


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        _ = make(tmp_path).split
    assert message in str(refusal.value) and "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Code(tmp_path / "ran"), "labels": []}, protocol=2))
    pickle.loads(batch.read_bytes())
    assert (tmp_path / "ran").exists(), "the pickle does run code"
    (tmp_path / "ran").unlink()
    with pytest.raises(UserError, match=r"data_batch_3: names .* nothing in it was run"):
        _ = Cifar10(str(tmp_path)).split
    assert not (tmp_path / "ran").exists()
