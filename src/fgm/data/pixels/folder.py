"""A folder of PNGs, in the order of their sorted relative paths; number 10 comes after number 9 if names are padded.

All must be whole and of one size and mode, and none may be left out unseen: the first image that does not fit is named.
Every file is read once to see that, and hashed, so that other pixels are another folder. Labels come from a
dataset.json beside them, in the form of StyleGAN's and EDM's tools, if there is one.
"""

from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from fgm.data.pixels.png import decode, read_labels
from fgm.utils.errors import UserError

OTHERS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy")


class PngFolder:
    """The first n PNGs of a folder.

    Args:
        directory: holds them.
        n: how many are promised; all if None.
        recursive: whether to look into subfolders.

    Raises:
        UserError: no folder, too few PNGs, one that is damaged or unlike the others, or labels that do not fit.
    """

    def __init__(self, directory: Path | str, n: int | None = None, recursive: bool = False) -> None:
        directory = Path(directory)
        paths = find(directory, recursive)
        self.n = promised(n, len(paths), str(directory), "PNGs")
        self.paths = paths[: self.n]
        self.labels = read_labels(directory, [path.relative_to(directory).as_posix() for path in self.paths])
        self.shape, self.sha256 = inspect(self.paths)

    def read(self, indices: range) -> Tensor:
        """uint8 (n, c, h, w)."""
        return torch.stack([decode(path.read_bytes(), path) for path in self.paths[indices.start : indices.stop]])


def promised(n: int | None, found: int, where: str, kind: str = "images") -> int:
    """How many are used: n of them, or all.

    Raises:
        UserError: fewer are there than promised, or none.
    """
    if not found or (n or 0) > found:
        wanted = f"and n = {n} are promised" if n else "and at least one is needed"
        raise UserError(f"{where} holds {found} {kind}, {wanted}: make the missing ones, or give another n=")
    return n or found


def find(directory: Path, recursive: bool) -> list[Path]:
    """All PNGs, sorted by their relative path."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder: it should hold PNGs")
    files = [p for p in (directory.rglob("*") if recursive else directory.glob("*")) if not hidden(p, directory)]
    foreign = sorted(path for path in files if path.suffix.lower() in OTHERS)
    if foreign:
        raise UserError(f"{foreign[0]}: is no PNG, and would be left out; the folder may hold PNGs alone")
    found = sorted((p for p in files if p.suffix.lower() == ".png"), key=lambda p: p.relative_to(directory).as_posix())
    if not found and not recursive and next(directory.rglob("*.png"), None):
        raise UserError(f"{directory} holds PNGs in subfolders alone: give recursive=true")
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
        raise UserError(
            f"{path}: is {in_words(shape)}, and {first_path.name} is {in_words(first)}; "
            "all images must be of one kind and size"
        )


def in_words(shape: tuple[int, ...]) -> str:
    c, h, w = shape
    return f"{'grey' if c == 1 else 'RGB'} {w} x {h}"
