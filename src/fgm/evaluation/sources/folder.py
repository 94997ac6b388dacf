"""A folder of PNGs, in the order of their sorted relative paths; number 10 comes after number 9 if names are padded.

All must be whole and of one size and mode, and none may be left out unseen: the first image that does not fit is named.
Every file is read once to see that, and hashed, so that other pixels are another source. Labels come from a
dataset.json beside them, in the form of StyleGAN's and EDM's tools, if there is one.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fgm.errors import Refusal
from fgm.evaluation.png import decode, read_labels
from fgm.evaluation.sources import Samples, promised

OTHERS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy")


class FolderSource:
    """The first n PNGs of a folder.

    Args:
        directory: holds them.
        n: how many are promised; all if None.
        recursive: whether to look into subfolders.
    """

    nfe, weights = 0, "folder"

    def __init__(self, directory: Path | str, n: int | None = None, recursive: bool = False) -> None:
        self.directory = Path(directory)
        self.paths = find(self.directory, recursive)
        self.n = promised(n, len(self.paths), str(self.directory), "PNGs")
        self.paths = self.paths[: self.n]
        self.names = [path.relative_to(self.directory).as_posix() for path in self.paths]
        self.labels = read_labels(self.directory, self.names)
        self.shape, self.sha256 = inspect(self.paths)

    def take(self, indices: range) -> Samples:
        images = [decode(path.read_bytes(), path) for path in self.paths[indices.start : indices.stop]]
        return Samples(torch.stack(images), None if self.labels is None else self.labels[list(indices)])

    def describe(self) -> dict[str, Any]:
        told = None if self.labels is None else sha256(self.labels.numpy().tobytes()).hexdigest()[:16]
        return {"kind": "folder", "shape": list(self.shape), "sha256": self.sha256, "labels": told}


def find(directory: Path, recursive: bool) -> list[Path]:
    """All PNGs, sorted by their relative path."""
    if not directory.is_dir():
        raise Refusal(f"{directory} is no folder: it should hold PNGs")
    files = [p for p in (directory.rglob("*") if recursive else directory.glob("*")) if not hidden(p, directory)]
    foreign = sorted(path for path in files if path.suffix.lower() in OTHERS)
    if foreign:
        raise Refusal(f"{foreign[0]}: is no PNG, and would be left out; the folder may hold PNGs alone")
    found = sorted((p for p in files if p.suffix.lower() == ".png"), key=lambda p: p.relative_to(directory).as_posix())
    if not found and not recursive and next(directory.rglob("*.png"), None):
        raise Refusal(f"{directory} holds PNGs in subfolders alone: give recursive=true")
    return found


def hidden(path: Path, directory: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(directory).parts)


def inspect(paths: list[Path]) -> tuple[tuple[int, ...], str]:
    """The shape that all images have, and the hash of their pixels, in order."""
    digest, first = sha256(), None
    for path in paths:
        image = decode(path.read_bytes(), path)
        first = image.shape if first is None else first
        require_alike(tuple(image.shape), tuple(first), path, paths[0])
        digest.update(image.numpy().tobytes())
    return tuple(first or ()), digest.hexdigest()


def require_alike(shape: tuple[int, ...], first: tuple[int, ...], path: Path, first_path: Path) -> None:
    if shape != first:
        raise Refusal(
            f"{path}: is {in_words(shape)}, and {first_path.name} is {in_words(first)}; "
            "all images must be of one kind and size"
        )


def in_words(shape: tuple[int, ...]) -> str:
    c, h, w = shape
    return f"{'grey' if c == 1 else 'RGB'} {w} x {h}"
