"""Fashion-MNIST and CIFAR-10 in the formats in which they are published.

    FashionMNIST      four IDX files, gzipped or raw        Debian's package dataset-fashion-mnist, or a download
    CIFAR10           cifar-10-python.tar.gz, or the cifar-10-batches-py that it unpacks to
    CIFAR10Parquet    PNGs in parquet files, as on the Hugging Face hub (uoft-cs/cifar10)

URLs, hashes and the download are torchvision's. Its dataset classes are not used: they execute CIFAR-10's pickles, and
read only raw IDX files in a folder layout of their own. Files that the user names may hold any images of the right
format; downloads have to match their hash.
"""

import fcntl
import gzip
import importlib
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from fgm.data import Split
from fgm.data.images import InMemoryImages, checked_labels, stack_images
from fgm.data.pixels import decode_png
from fgm.utils.errors import UserError, first_line, require_installed
from fgm.utils.files import damage_of, stranger
from fgm.utils.pickles import ARRAYS, CONTAINERS, read_pickle
from fgm.utils.validation import validated


@dataclass(frozen=True)
class RemoteDataset:
    """Files of a dataset that can be downloaded.

    Attributes:
        name: for messages, and of the folder in the cache.
        url: of the folder that holds the files.
        md5: hashes by file name.
        unpacked: what a file unpacks to, by file name; accepted in its place.
        package: folder where a system package installs the files.
        remedy: what else the user can do if they are missing.
    """

    name: str
    url: str
    md5: dict[str, str]
    unpacked: dict[str, str]
    package: Path | None = field(default=None)
    remedy: str = ""

    @property
    def cache(self) -> Path:
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fgm" / self.name

    def locate(self, directory: str | None, download: bool) -> dict[str, Path]:
        """Return the path of each file: in directory if it is given, else in the package's folder or in the cache.

        Raises:
            UserError: a file is missing, or cannot be downloaded.
        """
        places = [Path(directory)] if directory else [place for place in (self.package, self.cache) if place]
        for place in places:
            candidates = {file: [place / file, place / self.unpacked[file]] for file in self.md5}
            found = {file: path for file, paths in candidates.items() for path in reversed(paths) if path.exists()}
            if len(found) == len(self.md5):
                return found
        if directory is None and download:
            return {file: self.download(file) for file in self.md5}
        raise UserError(
            f"{self.name} needs {', '.join(self.md5)} in {' or '.join(map(str, places))}; "
            f"{self.remedy}give data.directory=<folder> or data.download=true"
        )

    def download(self, file: str) -> Path:
        """Download a file into the cache; processes that want the same file take turns."""
        path, partial = self.cache / file, self.cache / "partial"
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                try:
                    download_url(self.url + file, partial, md5=self.md5[file])
                except (OSError, RuntimeError) as error:
                    reason = first_line(error)
                    raise UserError(
                        f"cannot download {self.url}{file} ({reason}); put it into {path.parent}"
                    ) from error
                os.replace(partial / file, path)
        return path


FASHION_MNIST = RemoteDataset(
    "fashion-mnist",
    datasets.FashionMNIST.mirrors[0],
    dict(datasets.FashionMNIST.resources),
    {file: file.removesuffix(".gz") for file, _ in datasets.FashionMNIST.resources},
    Path("/usr/share/datasets/fashion-mnist"),
    "apt install dataset-fashion-mnist, ",
)
CIFAR_10 = RemoteDataset(
    "cifar-10",
    datasets.CIFAR10.url.removesuffix(datasets.CIFAR10.filename),
    {datasets.CIFAR10.filename: datasets.CIFAR10.tgz_md5},
    {datasets.CIFAR10.filename: datasets.CIFAR10.base_folder},
)


@validated
class FashionMNIST(InMemoryImages):
    """Fashion-MNIST (arXiv 1708.07747): 60,000 + 10,000 grey images of clothes (1, 28, 28) in [-1, 1], ten classes.

    Args:
        directory: folder of the four files; Debian's or the cache if None.
        download: whether to download missing files into the cache.
        classes: whether the set is class-conditional.
        flips: see InMemoryImages; shoes all point to the left, so that flips change the distribution.

    Raises:
        UserError: files are missing, damaged, or of another format.
    """

    shape = (1, 28, 28)

    def __init__(
        self, directory: str | None = None, download: bool = False, classes: bool = True, flips: bool = False
    ) -> None:
        super().__init__(10 * classes, flips)
        self.files = FASHION_MNIST.locate(directory, download)

    def read(self, part: str) -> Split:
        name = {"train": "train", "test": "t10k"}[part]
        images_file, labels_file = (self.files[f"{name}-{kind}-ubyte.gz"] for kind in ("images-idx3", "labels-idx1"))
        images, labels = read_idx(images_file, 3)[:, None], read_idx(labels_file, 1)
        if images.shape[1:] != self.shape:
            raise UserError(f"{images_file}: images have shape {tuple(images.shape[1:])}, expected {self.shape}")
        return images, checked_labels(labels, len(images), 10, labels_file)


def read_idx(path: Path, axes: int) -> Tensor:
    """Return the content of an IDX file of bytes, uint8.

    The format: two zero bytes, 8 for bytes, the number of axes, each axis as a big-endian int32, the bytes.

    Raises:
        UserError: the file is damaged, or of another format.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({damage_of(path, error)}); download it again") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, 8, axes)):
        what = stranger(content[:512]) or f"not an IDX file of bytes with {axes} axes"
        raise UserError(f"{path}: {what}; download it again")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) != header + prod(shape):
        raise UserError(f"{path}: has {len(content) - header} of {prod(shape)} bytes; download it again")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


@validated
class CIFAR10(InMemoryImages):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 RGB images (3, 32, 32) in [-1, 1], ten classes.

    Args:
        directory: folder of cifar-10-python.tar.gz or cifar-10-batches-py; the cache if None.
        download: whether to download the missing archive into the cache.
        classes: whether the set is class-conditional.
        flips: see InMemoryImages.

    Raises:
        UserError: files are missing, damaged, or of another format.
    """

    shape = (3, 32, 32)

    def __init__(
        self, directory: str | None = None, download: bool = False, classes: bool = True, flips: bool = True
    ) -> None:
        super().__init__(10 * classes, flips)
        (self.path,) = CIFAR_10.locate(directory, download).values()

    def read(self, part: str) -> Split:
        names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
        try:
            if self.path.is_dir():
                contents = [(self.path / name).read_bytes() for name in names]
            else:
                with tarfile.open(self.path) as archive:
                    members = [archive.extractfile(f"{datasets.CIFAR10.base_folder}/{name}") for name in names]
                    contents = [member.read() if member else b"" for member in members]
        except (OSError, EOFError, tarfile.TarError, KeyError) as error:
            raise UserError(f"{self.path}: damaged ({damage_of(self.path, error)}); download it again") from error
        batches = zip(contents, names, strict=True)
        return concatenate(read_batch(content, f"{self.path}: {name}") for content, name in batches)


def read_batch(content: bytes, where: str) -> tuple[Tensor, Tensor]:
    """Read a Python 2 pickle of {data: uint8 (n, 3072), planes row by row; labels: list of n}."""
    batch = read_pickle(BytesIO(content), where, CONTAINERS | ARRAYS, encoding="bytes")
    batch = batch if isinstance(batch, dict) else {}
    pixels: Any = batch.get(b"data")
    labels = batch.get(b"labels")
    if getattr(pixels, "dtype", None) != "uint8" or pixels.shape[1:] != (3072,) or not isinstance(labels, list):
        raise UserError(f"{where}: expected data, uint8 (n, 3072), and labels, a list; download it again")
    if not all(type(label) is int for label in labels):
        raise UserError(f"{where}: has labels that are no integers; download it again")
    images = torch.from_numpy(pixels.copy()).reshape(-1, *CIFAR10.shape)
    return images, checked_labels(torch.tensor(labels), len(images), 10, where)


@validated
class CIFAR10Parquet(InMemoryImages):
    """CIFAR-10 from the hub's parquet files, which pyarrow reads (the extra `parquet`).

    Args:
        directory: folder of train-*.parquet and test-*.parquet, or its parent if they are in plain_text.
        classes: whether the set is class-conditional.
        flips: see InMemoryImages.

    Raises:
        UserError: pyarrow is not installed, or files are missing, damaged, or of another format.
    """

    shape = (3, 32, 32)

    def __init__(self, directory: str, classes: bool = True, flips: bool = True) -> None:
        super().__init__(10 * classes, flips)
        require_installed("pyarrow", "data = cifar10_parquet, unlike data = cifar10,")
        place = Path(directory) / "plain_text"
        self.files = {part: parquet_files(place if place.is_dir() else Path(directory), part) for part in self.parts}

    def read(self, part: str) -> Split:
        return concatenate(map(self.read_file, self.files[part]))

    def read_file(self, file: Path) -> tuple[Tensor, Tensor]:
        parquet: Any = importlib.import_module("pyarrow.parquet")
        try:
            rows = parquet.read_table(file, columns=["img", "label"]).to_pylist()
            pngs, labels = [row["img"]["bytes"] for row in rows], torch.tensor([row["label"] for row in rows])
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own derive from these
            raise UserError(f"{file}: not a parquet file of img and label ({damage_of(file, error)})") from error
        if not rows:
            raise UserError(f"{file}: no images; download it again")
        images = stack_images(
            [decode_png(png, file / str(i)) for i, png in enumerate(pngs)], self.shape, lambda i: f"{file}: row {i}"
        )
        return images, checked_labels(labels, len(images), 10, file)


def parquet_files(directory: Path, part: str) -> list[Path]:
    """Return all files of a part, as many as their names say."""
    files = sorted(directory.glob(f"{part}-*.parquet"))
    expected = {int(match[1]) for file in files if (match := re.fullmatch(rf"{part}-\d+-of-(\d+)", file.stem))}
    if not files or (expected and expected != {len(files)}):
        raise UserError(
            f"{directory}: {len(files)} of {max(expected, default=1)} files {part}-*.parquet; "
            "run hf download uoft-cs/cifar10"
        )
    return files


def concatenate(parts: Iterable[tuple[Tensor, Tensor]]) -> Split:
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)
