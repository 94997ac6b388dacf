"""PNG files as data: folders, and zips in the layout of EDM's dataset_tool."""

import logging
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NoReturn

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor

from fgm.data import Data, Split
from fgm.data.images import InMemoryImages, mirror, random_indices, stack_images, uniform_labels
from fgm.data.pixels import LABELS, decode_png, dequantise, parse_labels, read_image, read_labels, require_classes
from fgm.utils.errors import UserError
from fgm.utils.files import damage_of
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

OTHER_IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".npy")
LEFT_BY_SYSTEMS = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin")
MAX_REFERENCE = 50_000  # images of a zip that distances are measured against


def is_hidden(name: str) -> bool:
    """Return whether a relative path is hidden or of the files that operating systems put beside images."""
    return any(part.startswith(".") or part.lower() in LEFT_BY_SYSTEMS for part in PurePosixPath(name).parts)


def image_names(names: Iterable[str], where: Path) -> list[str]:
    """Return the relative paths of the PNGs among names, in any case, sorted; what systems put beside them is ignored.

    Raises:
        UserError: there is an image of another format, which would not be counted.
    """
    seen = sorted(name for name in names if not is_hidden(name))
    for name in seen:
        if PurePosixPath(name).suffix.lower() in OTHER_IMAGES:
            raise UserError(f"{where / name}: not a PNG; only PNGs are counted: convert it, or move it elsewhere")
    return [name for name in seen if name.lower().endswith(".png")]


def list_files(directory: Path, recursive: bool = True) -> list[str]:
    """Return the relative paths of all files of a folder; links to folders are followed, hidden folders are not.

    Raises:
        UserError: a folder cannot be read, is missing or contains itself through a link, or an image is no file.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder of PNGs")

    def unreadable(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); give access to it, or move it elsewhere")

    names = []
    for place, folders, files in os.walk(directory, onerror=unreadable, followlinks=True):
        relative = Path(place).relative_to(directory)
        folders[:] = [name for name in folders if recursive and not is_hidden(name)]
        for name in folders:
            if Path(place).resolve().is_relative_to((Path(place) / name).resolve()):
                raise UserError(f"{Path(place) / name}: is a link to a folder that holds it; remove it")
        for name in files:
            path = Path(place) / name
            if name.lower().endswith(".png") and not is_hidden(name) and not path.is_file():
                what = "links to nowhere" if path.is_symlink() else "is no file"
                raise UserError(f"{path}: {what}; remove it, or put the image there")
            names.append((relative / name).as_posix())
    return names


def find_pngs(directory: Path, recursive: bool) -> list[str]:
    """Return the relative paths of a folder's PNGs; without recursive, one line says how many are in subfolders."""
    found = image_names(list_files(directory, recursive), directory)
    if not recursive:
        try:
            deeper = len(image_names((name for name in list_files(directory) if "/" in name), directory))
        except UserError:  # of files that are not counted
            deeper = 0
        if deeper and not found:
            raise UserError(f"{directory}: PNGs only in subfolders; give recursive=true")
        if deeper:
            message = "%s: %d PNGs are counted, and %d in subfolders are not: give recursive=true to count all"
            logging.getLogger(__name__).warning(message, directory, len(found), deeper)
    return found


class PngFolder:
    """The first n PNGs of a folder, in the order of their sorted relative paths.

    Every file is decoded once: all images must be undamaged and of one size and mode, and the hash of their pixels
    identifies the folder. Labels come from a dataset.json, if there is one.

    Args:
        directory: folder of the PNGs.
        n: number of images; all if None.
        recursive: whether to search subfolders.

    Attributes:
        shape: shape of an image, (c, h, w).
        labels: (n,) or None.
        sha256: hash of the pixels, in order.

    Raises:
        UserError: no such folder, too few PNGs, a damaged or different one, or labels that do not fit.
    """

    def __init__(self, directory: Path | str, n: int | None = None, recursive: bool = False) -> None:
        self.directory = Path(directory)
        names = find_pngs(self.directory, recursive)
        self.n = available(n, len(names), str(directory), "PNGs")
        self.names = names[: self.n]
        self.labels = read_labels(self.directory, self.names)
        self.paths = [self.directory / name for name in self.names]
        digest, first = sha256(), decode_png(read_image(self.paths[0]), self.paths[0])
        for path in self.paths:
            image = decode_png(read_image(path), path)
            if image.shape != first.shape:
                raise UserError(f"{path}: is {size_of(image)}, but {self.paths[0].name} is {size_of(first)}")
            digest.update(image.numpy().tobytes())
        self.shape, self.sha256 = tuple(first.shape), digest.hexdigest()

    def read(self, indices: range) -> Tensor:
        """Return images, uint8 (len(indices), c, h, w)."""
        return torch.stack([decode_png(read_image(path), path) for path in self.paths[indices.start : indices.stop]])

    def require_classes(self, num_classes: int) -> None:
        """Raise a UserError that names the file, the image and the label unless all labels are below num_classes."""
        if self.labels is not None:
            require_classes(self.labels.tolist(), self.names, num_classes, str(self.directory / LABELS))


def size_of(image: Tensor) -> str:
    c, h, w = image.shape
    return f"{'grey' if c == 1 else 'RGB'} {w} x {h}"


def available(n: int | None, count: int, where: str, kind: str = "images") -> int:
    """Return n, or count if n is None.

    Raises:
        UserError: there are fewer than n, or none.
    """
    if not count or (n or 0) > count:
        raise UserError(f"{where}: {count} {kind}, but {f'n = {n}' if n else 'at least one'} needed")
    return n or count


@validated
class ImageFolder(InMemoryImages):
    """A folder of PNGs as images in [-1, 1], class-conditional if a dataset.json has their labels.

    Args:
        directory, recursive: see PngFolder.
        flips: see InMemoryImages.
    """

    parts = ("train",)

    def __init__(self, directory: str, recursive: bool = False, flips: bool = False) -> None:
        self.folder = PngFolder(directory, recursive=recursive)
        self.shape, labels = self.folder.shape, self.folder.labels
        super().__init__(0 if labels is None else int(labels.max()) + 1, flips)

    def read(self, part: str) -> Split:
        """Return all images: a folder has no test split."""
        return self.folder.read(range(self.folder.n)), self.folder.labels

    @cached_property
    def std(self) -> float:
        return self.reference(self.std_examples, keyed_generator("data std", index=0)).std().item()

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        """Return the labels of n random images."""
        labels = self.folder.labels
        return None if labels is None else labels[random_indices(len(labels), n, generator)].to(generator.device)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Return images in random order, none twice."""
        images, _ = self.training
        return dequantise(images[torch.randperm(len(images), generator=generator, device=generator.device).cpu()[:n]])


@validated
class ImageZip(Data):
    """A zip of PNGs and a dataset.json, as EDM's dataset_tool makes them of ImageNet, CIFAR-10, FFHQ or AFHQ.

    Images in [-1, 1] are drawn with replacement, and decoded when they are drawn: ImageNet-64 would take 16 GB.

    Args:
        path: the zip.
        size: side of an image in pixels.
        num_classes: labels have to be below it; 0 ignores the zip's labels.
        flips: whether each image that is drawn is mirrored left to right with probability 1/2.

    Raises:
        UserError: no such zip, a damaged one, images of another size, or labels out of range.
    """

    def __init__(
        self, path: str, size: PositiveInt = 64, num_classes: NonNegativeInt = 1000, flips: bool = True
    ) -> None:
        self.path, self.num_classes, self.flips = Path(path), num_classes, flips
        try:
            self.archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: missing or damaged ({damage_of(self.path, error)}); make it with EDM's dataset_tool"
            ) from error
        self.names = image_names((entry.filename for entry in self.archive.infolist() if not entry.is_dir()), self.path)
        if not self.names:
            raise UserError(f"{path}: no PNGs")
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{path}: holds {Counter(self.names).most_common(1)[0][0]} twice; make the zip again")
        self.shape = (len(self.image(0)), size, size)
        self.labels = self.read_labels() if num_classes else None
        self.take(torch.tensor([0]))

    def image(self, index: int) -> Tensor:
        name = self.names[index]
        return decode_png(self.read(name), self.path / name)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            UserError: it is damaged, encrypted or compressed by an unknown method.
        """
        try:
            return self.archive.read(name)
        except (zipfile.BadZipFile, OSError, RuntimeError, zlib.error, EOFError) as error:
            raise UserError(f"{self.path / name}: damaged or encrypted ({error}); make the zip again") from error

    def read_labels(self) -> Tensor:
        """Return the labels of dataset.json, which may be in the one folder that holds everything."""
        remedy = "give data.num_classes=0 to ignore labels"
        folder = f"{self.names[0].partition('/')[0]}/"
        inside = LABELS not in self.archive.namelist() and all(name.startswith(folder) for name in self.names)
        file = (folder if inside else "") + LABELS
        content = self.read(file) if file in self.archive.namelist() else b"{}"
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / file} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        names = [name.removeprefix(folder if inside else "") for name in self.names]
        labels = parse_labels(text, str(self.path / file), names, remedy, self.num_classes)
        if labels is None:
            raise UserError(f"{self.path / file}: no labels; {remedy}")
        return labels

    def take(self, indices: Tensor) -> Tensor:
        """Return images by their indices, uint8 (n, *shape).

        Raises:
            UserError: an image is of another size or mode.
        """
        images = [self.image(i) for i in indices.tolist()]
        return stack_images(images, self.shape, lambda i: f"{self.path}: {self.names[indices[i]]}")

    @cached_property
    def split(self) -> dict[str, Split]:
        """Up to MAX_REFERENCE images at equal intervals, keyed train: EDM's zips have no test split."""
        chosen = torch.arange(len(self.names))[:: -(-len(self.names) // MAX_REFERENCE)]
        return {"train": (self.take(chosen), None if self.labels is None else self.labels[chosen])}

    def draw(self, n: int, generator: Generator) -> Split:
        chosen = random_indices(len(self.names), n, generator)
        x_0 = dequantise(self.take(chosen).to(generator.device))
        labels = None if self.labels is None else self.labels[chosen].to(generator.device)
        return mirror(x_0, generator) if self.flips else x_0, labels

    def conditions(self, n: int, generator: Generator) -> Tensor | None:
        return uniform_labels(self.num_classes, n, generator)

    def reference(self, n: int, generator: Generator) -> Tensor:
        """Return images in random order, none twice."""
        order = torch.randperm(len(self.names), generator=generator, device=generator.device).cpu()
        return dequantise(self.take(order[:n]))
