"""Damaged, missing and malicious image files are one line that names the file, and nothing in them is executed."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import Code, bytes_of, idx, write_cifar10, write_fashion, write_parquet, write_zip

from fgm.data.folders import ImageFolder, ImageZip
from fgm.data.published import CIFAR10, CIFAR10Parquet, FashionMNIST
from fgm.utils.errors import UserError


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def fashion(change: Callable[[Path], Any]) -> Callable[[Path], FashionMNIST]:
    def make(tmp: Path) -> FashionMNIST:
        write_fashion(tmp)
        change(tmp)
        return FashionMNIST(str(tmp))

    return make


def fashion_bytes(content: bytes) -> Callable[[Path], FashionMNIST]:
    return fashion(lambda tmp: (tmp / "train-images-idx3-ubyte.gz").write_bytes(content))


def cifar10(archive: bool = False, share: float = 1.0, **changes: Any) -> Callable[[Path], CIFAR10]:
    def make(tmp: Path) -> CIFAR10:
        write_cifar10(tmp, archive=archive, **changes)
        if archive:
            cut(tmp / "cifar-10-python.tar.gz", share)
        return CIFAR10(str(tmp))

    return make


def parquet(change: Callable[[Path], Any] | None = None, **changes: Any) -> Callable[[Path], CIFAR10Parquet]:
    def make(tmp: Path) -> CIFAR10Parquet:
        write_parquet(tmp, **changes)
        if change:
            change(tmp / "plain_text" / "train-00001-of-00002.parquet")
        return CIFAR10Parquet(str(tmp))

    return make


def zipped(share: float = 1.0, **changes: Any) -> Callable[[Path], ImageZip]:
    def make(tmp: Path) -> ImageZip:
        write_zip(tmp / "z.zip", **changes)
        cut(tmp / "z.zip", share)
        return ImageZip(str(tmp / "z.zip"))

    return make


THOUSAND = [[f"00000/img{i:08d}.png", 1000] for i in range(12)]
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no Fashion-MNIST": (lambda tmp: FashionMNIST(str(tmp)), "fashion-mnist needs train-images-idx3-ubyte.gz"),
    "gzip": (fashion(lambda tmp: cut(tmp / "train-images-idx3-ubyte.gz")), "damaged gzip file"),
    "IDX": (fashion_bytes(gzip.compress(idx(bytes_of(9, 28, 28))[:-5])), "has 7051 of 7056 bytes"),
    "no IDX": (fashion_bytes(gzip.compress(b"hello, hello")), "not an IDX file"),
    "32 pixels": (fashion(lambda tmp: write_fashion(tmp, side=32)), "shape (1, 32, 32), expected (1, 28, 28)"),
    "label 11": (
        fashion(lambda tmp: write_fashion(tmp, labels=torch.full((40,), 11, dtype=torch.uint8))),
        "label 0 is 11; expected 0 to 9",
    ),
    "39 labels": (
        fashion(lambda tmp: write_fashion(tmp, labels=torch.zeros(39, dtype=torch.uint8))), "39 labels for 40 images"
    ),
    "no CIFAR-10": (lambda tmp: CIFAR10(str(tmp)), "cifar-10 needs cifar-10-python.tar.gz"),
    "tar": (cifar10(archive=True, share=0.5), "cifar-10-python.tar.gz: damaged"),
    "label 10": (cifar10(labels=[0] * 19 + [10]), "label 19 is 10; expected 0 to 9"),
    "label -1": (cifar10(labels=[0] * 19 + [-1]), "label 19 is -1; expected 0 to 9"),
    "28 pixels": (cifar10(data=bytes_of(20, 2352).numpy()), "expected data, uint8 (n, 3072)"),
    "no array": (cifar10(data=[1, 2]), "expected data, uint8 (n, 3072)"),
    "no parquet": (lambda tmp: CIFAR10Parquet(str(tmp)), "0 of 1 files train-*.parquet; run hf download"),
    "parquet missing": (parquet(Path.unlink), "1 of 2 files train-*.parquet"),
    "parquet cut": (parquet(cut), "not a parquet file of img and label"),
    "parquet's label": (parquet(label=10), "label 5 is 10; expected 0 to 9"),
    "parquet's size": (parquet(size=28), "row 0 has shape (3, 28, 28), expected (3, 32, 32)"),
    "no folder": (lambda tmp: ImageFolder(str(tmp / "nowhere")), "no such folder of PNGs"),
    "zip cut": (zipped(0.5), "missing or damaged"),
    "odd image": (zipped(odd=0), "has shape (3, 63, 64), expected (3, 64, 64)"),
    "zip's label": (zipped(labels=THOUSAND), "the label of 00000/img00000000.png is 1000; expected 0 to 999"),
    "no labels": (zipped(labels=None), "no labels; give data.num_classes=0"),
    "other labels": (zipped(labels=[["a.png", 1]]), "no label for 00000/img00000000.png; add it, or give"),
    "malformed labels": (zipped(labels=[1]), "labels must be a list of [name, integer]"),
}  # fmt: skip


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        _ = make(tmp_path).split
    assert message in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(pickle.dumps({"data": Code(tmp_path / "ran"), "labels": []}, protocol=2))
    pickle.loads(batch.read_bytes())
    assert (tmp_path / "ran").exists(), "the pickle does run code"
    (tmp_path / "ran").unlink()
    with pytest.raises(UserError, match="data_batch_3"):
        _ = CIFAR10(str(tmp_path)).split
    assert not (tmp_path / "ran").exists()
