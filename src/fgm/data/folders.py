"""PNG files as data: folders, and zips in the layout of EDM's dataset_tool."""

import zipfile
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor

from fgm.data import Data, Split
from fgm.data.images import InMemoryImages, checked_labels, mirror, random_indices, stack_images, uniform_labels
from fgm.data.pixels import LABELS, decode_png, dequantise, parse_labels, read_labels
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator
from fgm.utils.validation import validated

OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy")
MAX_REFERENCE = 50_000  # images of a zip that distances are measured against


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
        directory = Path(directory)
        paths = find_pngs(directory, recursive)
        self.n = available(n, len(paths), str(directory), "PNGs")
        self.paths = paths[: self.n]
        self.labels = read_labels(directory, [path.relative_to(directory).as_posix() for path in self.paths])
        digest, first = sha256(), decode_png(self.paths[0].read_bytes(), self.paths[0])
        for path in self.paths:
            image = decode_png(path.read_bytes(), path)
            if image.shape != first.shape:
                raise UserError(f"{path}: is {size_of(image)}, but {self.paths[0].name} is {size_of(first)}")
            digest.update(image.numpy().tobytes())
        self.shape, self.sha256 = tuple(first.shape), digest.hexdigest()

    def read(self, indices: range) -> Tensor:
        """Return images, uint8 (len(indices), c, h, w)."""
        return torch.stack([decode_png(path.read_bytes(), path) for path in self.paths[indices.start : indices.stop]])


def find_pngs(directory: Path, recursive: bool) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder of PNGs")
    relative = {path: path.relative_to(directory) for path in directory.glob("**/*" if recursive else "*")}
    files = [path for path, name in relative.items() if not any(part.startswith(".") for part in name.parts)]
    for path in sorted(files):
        if path.suffix.lower() in OTHER_FORMATS:
            raise UserError(f"{path}: not a PNG; the folder may hold only PNGs")
    found = sorted((p for p in files if p.suffix.lower() == ".png"), key=lambda path: relative[path].as_posix())
    if not found and not recursive and next(directory.rglob("*.png"), None):
        raise UserError(f"{directory}: PNGs only in subfolders; give recursive=true")
    return found


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
            raise UserError(f"{path}: missing or damaged ({error}); make it with EDM's dataset_tool") from error
        self.names = sorted(name for name in self.archive.namelist() if name.lower().endswith(".png"))
        if not self.names:
            raise UserError(f"{path}: no PNGs")
        self.shape = (len(self.image(0)), size, size)
        self.labels = self.read_labels() if num_classes else None
        self.take(torch.tensor([0]))

    def image(self, index: int) -> Tensor:
        name = self.names[index]
        try:
            return decode_png(self.archive.read(name), self.path / name)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{self.path / name}: damaged ({error}); make the zip again") from error

    def read_labels(self) -> Tensor:
        where, remedy = f"{self.path}: {LABELS}", "give data.num_classes=0 to ignore labels"
        content = self.archive.read(LABELS).decode() if LABELS in self.archive.namelist() else "{}"
        labels = parse_labels(content, where, self.names, remedy)
        if labels is None:
            raise UserError(f"{where}: no labels; {remedy}")
        return checked_labels(labels, len(self.names), self.num_classes, where)

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
