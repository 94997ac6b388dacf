"""CIFAR-10 in the hub's parquet files: what is drawn is what lies there; without pyarrow, or broken, it is one line.

Where pyarrow is not installed, a stand-in for its read_table reads files of its own; where it is, both are tested.
"""

import base64
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from official_files import bytes_of
from torch import Tensor

from fgm.archives import require_data
from fgm.data.parquet import Cifar10Parquet
from fgm.errors import Refusal
from fgm.evaluation.png import encode
from fgm.evaluation.quantise import dequantise
from fgm.streams import stream

REAL = importlib.util.find_spec("pyarrow") is not None


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_table(file: Path, columns: list[str]) -> Any:
        rows = json.loads(file.read_text())
        for row in rows:
            row["img"]["bytes"] = base64.b64decode(row["img"]["bytes"])
        return SimpleNamespace(to_pylist=lambda: [{name: row[name] for name in columns} for row in rows])

    for name in ("pyarrow", "pyarrow.parquet"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.read_table = read_table  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=["stand-in", pytest.param("pyarrow", marks=pytest.mark.skipif(not REAL, reason="no pyarrow"))])
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "stand-in":
        stand_in(monkeypatch)
    return request.param == "pyarrow"


def write(file: Path, images: Tensor, labels: list[int], real: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"img": {"bytes": encode(image), "path": None}, "label": label}
            for image, label in zip(images, labels, strict=True)]  # fmt: skip
    if real:
        import pyarrow  # type: ignore[import-not-found]
        import pyarrow.parquet  # type: ignore[import-not-found]

        return pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    told = [{**row, "img": {"bytes": base64.b64encode(row["img"]["bytes"]).decode()}} for row in rows]
    file.write_text(json.dumps(told))


def write_all(directory: Path, real: bool, files: int = 2, size: int = 32, label: int = 9) -> Tensor:
    """Two training files of six and a test file; the training images."""
    images = bytes_of(6 * files, 3, size, size)
    for i, part in enumerate(images.chunk(files)):
        write(directory / "plain_text" / f"train-{i:05d}-of-{files:05d}.parquet", part, [0, 1, 2, 3, 4, label], real)
    write(directory / "plain_text" / "test-00000-of-00001.parquet", images[:6], [0, 1, 2, 3, 4, 5], real)
    return images


@pytest.mark.parametrize("inner", [False, True])
def test_draws_are_the_files_images_with_their_labels(inner: bool, real: bool, tmp_path: Path) -> None:
    images = write_all(tmp_path, real)
    data = Cifar10Parquet(str(tmp_path / "plain_text" if inner else tmp_path), flips=False)
    x, y = data.draw(300, stream("draw", index=0))
    which = (x[:, None] == dequantise(images)).flatten(2).all(2)
    assert which.sum(1).eq(1).all() and which.any(0).all() and y is not None
    assert torch.equal(y, torch.tensor([0, 1, 2, 3, 4, 9] * 2)[which.int().argmax(1)])
    assert len(data.split["test"][0]) == 6 and Cifar10Parquet(str(tmp_path), classes=False).split["train"][1] is None


def drop(directory: Path) -> None:
    (directory / "plain_text" / "train-00001-of-00002.parquet").unlink()


def spoil(directory: Path) -> None:
    file = directory / "plain_text" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BAD: dict[str, tuple[dict[str, int], Any, str]] = {
    "a file missing": ({}, drop, "needs 2 files train-*.parquet and has 1"),
    "cut short": ({}, spoil, "is no parquet file of img (bytes, path) and label"),
    "label 10": ({"label": 10}, None, "label 5 is 10, and must lie in 0 to 9"),
    "images of 28": ({"size": 28}, None, "row 0 is of shape (3, 28, 28), and should be of (3, 32, 32)"),
}


@pytest.mark.parametrize("options, change, message", BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_line(options: Any, change: Any, message: str, real: bool, tmp_path: Path) -> None:
    write_all(tmp_path, real, **options)
    if change:
        change(tmp_path)
    with pytest.raises(Refusal) as refusal:
        _ = Cifar10Parquet(str(tmp_path)).split
    assert message in str(refusal.value) and "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_an_empty_directory_is_one_line(real: bool, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"needs train-00000-of-00001.parquet and has 0: run hf download"):
        Cifar10Parquet(str(tmp_path))


def test_without_pyarrow_a_config_is_refused_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.errors.find_spec", lambda name: None)
    node = {"data": {"_target_": "fgm.data.parquet.Cifar10Parquet", "directory": "cifar10"}}
    with pytest.raises(Refusal, match=r"pip install -e '.\[parquet\]'") as refusal:
        require_data(node)
    with pytest.raises(Refusal, match=r"pip install -e '.\[parquet\]'"):
        Cifar10Parquet("cifar10")
    assert "\n" not in str(refusal.value)
