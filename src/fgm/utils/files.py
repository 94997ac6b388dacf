"""Files of the user, read with one clear line if they are not as expected; files written atomically."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any
from unicodedata import category

from fgm.utils.errors import UserError, first_line, unwritable

NAME_MAX = 255  # bytes
GZIP = b"\x1f\x8b"
SIGNATURES = {  # beginnings of files that turn up under another file's name, and what the user can do
    b"version https://git-lfs": "is a pointer of Git LFS, not the file: run git lfs pull",
    b"<!doctype html": "is a web page: download the file itself, logged in if its host asks for it",
    b"<html": "is a web page: download the file itself, logged in if its host asks for it",
    b"<?xml": "is an XML text, such as a storage server's error: download the file again",
    b"\xff\xd8\xff": "is a JPEG image",
    b"GIF8": "is a GIF image",
    b"BM": "is a BMP image",
    b"II*\0": "is a TIFF image",
    b"MM\0*": "is a TIFF image",
    b"\x89PNG": "is a PNG image",
    GZIP: "is a gzip file: unpack it",
    b"\x93NUMPY": "is a .npy file of numpy",
    b"\x89HDF": "is an HDF5 file",
}
WITHOUT_GLYPH = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode's categories of controls, formats such as U+200B, and spaces
FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters that are drawn as nothing
UMASK = os.umask(0)  # it cannot be read without being set
os.umask(UMASK)


def read_text(path: Path, content: str) -> str:
    """Read UTF-8, with or without a byte order mark; error messages say that the file should hold content."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing: it should hold {content}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def stranger(content: bytes) -> str:
    """Say what a file that does not hold what its name says is, and what to do; "" if its beginning is unknown."""
    head = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content.strip(b"\0"):
        return "holds only zeros: copy or download it again" if content else "is empty: copy or download it again"
    if head[:4] == b"riff" and head[8:12] == b"webp":
        return "is a WebP image"
    return next((what for start, what in SIGNATURES.items() if head.startswith(start.lower())), "")


def damage_of(path: Path, error: BaseException) -> str:
    """Say why a file cannot be read: what it is by its content, or else the first line of the error."""
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError:
        return first_line(error)
    return first_line(error) if head.startswith(GZIP) else stranger(head) or first_line(error)


def stripped(text: str) -> str:
    """Return text without white space, zero-width characters and byte-order marks at its ends."""
    seen = [i for i, c in enumerate(text) if category(c) not in WITHOUT_GLYPH and c not in FILLERS]
    return text[seen[0] : seen[-1] + 1] if seen else ""


def read_lines(path: Path, content: str) -> Iterator[tuple[str, str]]:
    """Yield ("<path>, line <number>", line), at least one. Only a line feed ends a line, as JSON lines need."""
    text = read_text(path, content)
    if not text.strip():
        raise UserError(f"{path} is empty: it should hold {content}")
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        yield f"{path}, line {number}", line


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets as deep
        raise UserError(f"{where}: no JSON that can be read ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: must be a JSON object, not {json.dumps(content)[:40]}")
    return content


def read_object(path: Path, content: str) -> dict[str, Any]:
    """Read a file of one JSON object."""
    return parse_object(read_text(path, content), str(path))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to path at the end: readers see the old file or the new one.

    Several processes may write the same file; the last one's remains.
    """
    name = path.name if len(os.fsencode(path.name)) < NAME_MAX - 32 else sha256(os.fsencode(path.name)).hexdigest()
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~UMASK)  # safetensors writes files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def require_place(folder: Path) -> None:
    """
    Raises:
        UserError: the folder does not exist and cannot be made, or is not writable.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"{place} is a file, and a folder is needed: give another place")
    if not os.access(place, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise UserError(unwritable(OSError(number, os.strerror(number), str(folder))))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
