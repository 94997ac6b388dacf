"""Which weights .safetensors files hold: their headers, and a fingerprint that reads little of each tensor.

8 bytes: length of the header | header, JSON: {name: {dtype, shape, data_offsets}}, __metadata__ | the tensors' bytes
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from fgm.utils.errors import UserError
from fgm.utils.pretrained import weight_files

HEAD = 4096  # bytes of a tensor that its fingerprint reads


class Entry(NamedTuple):
    """Of a tensor: its bytes are those from begin to end of the file."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, Any]]:
    """The tensors of a .safetensors file by their names, and its metadata.

    Raises:
        UserError: it is no such file, or cut short.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length < size else {}
        metadata = dict(header.pop("__metadata__", {}))
        start = 8 + length
        tensors = {
            name: Entry(entry["dtype"], entry["shape"], *(start + int(i) for i in entry["data_offsets"]))
            for name, entry in header.items()
        }
        end = max(entry.end for entry in tensors.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is no .safetensors file; remove it and make it again") from error
    if size != end:
        raise UserError(f"{file} is cut short: remove it and make it again")
    return tensors, metadata


def fingerprint(files: Iterable[Path]) -> str:
    """Sixteen hex digits of every tensor's name, type, shape and first 4 KiB, however they are cut into files.

    No training leaves a tensor's first thousand weights as they were, and gigabytes are told apart in a moment.
    """
    tensors: dict[str, list[Any]] = {}
    for file in files:
        header, _ = read_header(file)
        with file.open("rb") as stream:
            for name, entry in header.items():
                stream.seek(entry.begin)
                head = sha256(stream.read(min(entry.end - entry.begin, HEAD))).hexdigest()
                tensors[name] = [entry.dtype, entry.shape, head]
    return sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()[:16]


def require_fingerprint(folder: Path, expected: str | None) -> None:
    """
    Raises:
        UserError: the weights in folder have another fingerprint, or one that does not begin so.
    """
    found = fingerprint(weight_files(folder)) if expected else ""
    if expected and not found.startswith(expected.lower()):
        raise UserError(f"{folder}: its weights have fingerprint {found}, and {expected} is asked for: they are others")
