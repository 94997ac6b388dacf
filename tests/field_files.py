"""Shared by the tests of readers in the field: PNGs that Pillow does not write, folders of them, and errors of one line."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgm.utils.errors import UserError


def one_line(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def png(pixels: Any = 7, mode: str = "L", **options: Any) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else Image.new(mode, (8, 8), pixels)
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def png_of(kind: int, bits: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8 x 8 pixels of a colour type and a depth that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    stride = len(rows) // 8
    filtered = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(8))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0)), *extra, (b"IDAT", zlib.compress(filtered))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def folder(directory: Path, n: int = 4, content: bytes | None = None) -> Path:
    directory.mkdir(parents=True)
    for i in range(n):
        (directory / f"{i:06d}.png").write_bytes(content or png(i))
    return directory
