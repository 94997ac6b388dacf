"""Files that a user holds, read with one clear line where they are not as expected, and hashed; files written whole."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError, told

UMASK = os.umask(0)  # which cannot be read without being set
os.umask(UMASK)


def read_text(path: Path, should_hold: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing: it should hold {should_hold}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is no UTF-8 text ({error.reason} at byte {error.start}); it should hold {should_hold}"
        ) from error


def read_lines(path: Path, should_hold: str) -> Iterator[tuple[str, str]]:
    """(where it stands, line); at least one. Only a line feed ends a line: JSON texts may hold other separators."""
    text = read_text(path, should_hold)
    if not text.strip():
        raise UserError(f"{path} is empty: it should hold {should_hold}")
    for number, line in enumerate(text.rstrip().split("\n"), 1):
        yield f"{path}, line {number}", line


def parse_object(text: str, where: str) -> dict[str, Any]:
    """One JSON object."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is no JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: must be a JSON object, not {json.dumps(content)[:40]}")
    return content


def read_object(path: Path, should_hold: str) -> dict[str, Any]:
    """The JSON object that a file is."""
    return parse_object(read_text(path, should_hold), str(path))


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically, also among processes that write the same file."""
    with replacing(path, shared=True) as temporary:
        temporary.write_bytes(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def require_place(folder: Path) -> None:
    """
    Raises:
        UserError: it is not there and cannot be made, or may not be written.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"{place} is a file, and a folder is needed: give another place")
    if not os.access(place, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise UserError(told(OSError(number, os.strerror(number), str(folder))))


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """Where to write what then takes path's place at once: a reader sees the old file or the new one.

    Args:
        shared: whether other processes may write the same file; what a killed one leaves is then not written over.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if shared else f".{path.name}.tmp")
    yield temporary
    temporary.chmod(0o666 & ~UMASK)  # safetensors leaves what it writes to its owner alone
    os.replace(temporary, path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
