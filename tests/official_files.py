"""Writers of small files in the formats in which image sets are published."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fgm.data.pixels import encode_png
from fgm.utils.random import keyed_generator


def bytes_of(*shape: int, role: str = "pixels") -> Tensor:
    return torch.randint(256, shape, generator=keyed_generator(role, index=0), dtype=torch.uint8)


def idx(array: Tensor) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.numpy().tobytes()


def write_fashion(directory: Path, n: int = 40, side: int = 28, labels: Tensor | None = None) -> Tensor:
    """Write the four files, the training ones gzipped and the others raw; return the training images."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, suffix in (("train", ".gz"), ("t10k", "")):
        images = bytes_of(n, side, side, role=name)
        classes = torch.arange(n, dtype=torch.uint8) % 10 if labels is None else labels
        for kind, array in (("images-idx3", images), ("labels-idx1", classes)):
            content = idx(array)
            (directory / f"{name}-{kind}-ubyte{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return bytes_of(n, side, side, role="train")


def write_cifar10(directory: Path, n: int = 20, archive: bool = False, **changes: Any) -> Tensor:
    """Write five batches of n, the fifth with changes, and a test batch, in a folder or a tar; return the training images."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": bytes_of(n, 3072, role=name).numpy(), "labels": [j % 10 for j in range(n)]}
        files[name] = python2_pickle(batch | (changes if name == "data_batch_5" else {}))
    if archive:
        with tarfile.open(directory / "cifar-10-python.tar.gz", "w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        (directory / "cifar-10-batches-py").mkdir(exist_ok=True)
        for name, content in files.items():
            (directory / "cifar-10-batches-py" / name).write_bytes(content)
    return torch.cat([bytes_of(n, 3072, role=f"data_batch_{i}") for i in range(1, 6)]).reshape(-1, 3, 32, 32)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Write text and bytes as Python 2 wrote its strings."""

    def save_string(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}  # type: ignore[attr-defined]


def python2_pickle(batch: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(batch)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_zip(path: Path, n: int = 12, size: int = 64, labels: Any = "given", odd: int | None = None) -> Tensor:
    """Write a zip in EDM's layout, image `odd` of another size; return the images."""
    images = bytes_of(n, 3, size, size, role="zip")
    names = [f"{i // 1000:05d}/img{i:08d}.png" for i in range(n)]
    pairs = [[name, i % 1000] for i, name in enumerate(names)] if labels == "given" else labels
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encode_png(images[i, :, 1:] if i == odd else images[i]))
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
    return images


def write_parquet(directory: Path, files: int = 2, size: int = 32, label: int = 9) -> Tensor:
    """Write training files of six images, whose last has this label, and a test file; return the training images."""
    import pyarrow
    import pyarrow.parquet

    folder, images = directory / "plain_text", bytes_of(6 * files, 3, size, size)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {f"train-{i:05d}-of-{files:05d}": part for i, part in enumerate(images.chunk(files))}
    for name, part in (parts | {"test-00000-of-00001": images[:6]}).items():
        pngs = [{"bytes": encode_png(image), "path": None} for image in part]
        rows = pyarrow.table({"img": pngs, "label": [0, 1, 2, 3, 4, label]})
        pyarrow.parquet.write_table(rows, folder / f"{name}.parquet")
    return images


def write_folder(directory: Path, n: int = 8, labelled: bool = True) -> Tensor:
    """Write RGB PNGs of 4 x 6 and, if labelled, a dataset.json in which image i has label i; return the images."""
    images = bytes_of(n, 3, 4, 6, role="folder")
    directory.mkdir()
    for i, image in enumerate(images):
        (directory / f"{i}.png").write_bytes(encode_png(image))
    if labelled:
        pairs = [[f"{i}.png", i] for i in range(n)]
        (directory / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return images


class Code:
    """Touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))
