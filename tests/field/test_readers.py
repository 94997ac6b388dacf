"""Images, folders and archives as users have them: read rightly, or refused in one line."""

import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from field_files import folder, one_line, png, png_of
from PIL import Image

from fgm.data.folders import ImageFolder, ImageZip, image_names, list_files
from fgm.data.pixels import decode_png, decode_rgb
from fgm.evaluation.sources import FolderSource

pytestmark = pytest.mark.field
HERE = Path("image.png")


# images


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of(2, 16, bytes(8 * 8 * 6)), "has 16 bits a channel"),
        (png_of(0, 16, bytes(8 * 8 * 2)), "has 16 bits a channel"),
        (png_of(6, 16, bytes(8 * 8 * 8)), "has 16 bits a channel"),
        (png(0, "P"), "has mode P; convert"),
        (png(0, "1"), "has mode 1; convert"),
        (png(mode="RGBA", pixels=(1, 2, 3, 4)), "has mode RGBA; convert"),
        (png_of(2, 8, bytes(8 * 8 * 3), (b"tRNS", bytes(6))), "has mode RGB with transparency"),
        (png(save_all=True, append_images=[Image.new("L", (8, 8), 200)]), "has 2 frames"),
        (b"", "is empty"),
        (bytes(400), "holds only zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n", "is a pointer of Git LFS"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG image"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (png()[:-12], "truncated"),
        (png()[:-1], "truncated"),
    ],
)
def test_image_that_would_be_narrowed_or_is_none_is_named(content: bytes, message: str) -> None:
    one_line(rf"^image\.png: .*{message}", lambda: decode_png(content, HERE))


@pytest.mark.parametrize("after", [b"\n", b"\0" * 7, png()])
def test_bytes_after_the_end_of_a_png_do_no_harm(after: bytes) -> None:
    assert torch.equal(decode_png(png(9) + after, HERE), torch.full((1, 8, 8), 9, dtype=torch.uint8))


def test_images_of_fewer_bits_are_scaled_to_eight() -> None:
    assert decode_png(png_of(0, 4, bytes([0xF0] * 32)), HERE)[0, 0, :2].tolist() == [255, 0]
    assert decode_png(png_of(0, 2, bytes([0b11100100] * 16)), HERE)[0, 0, :4].tolist() == [255, 170, 85, 0]


def test_opaque_alpha_and_palettes_are_read_as_rgb_and_transparency_is_refused() -> None:
    for content in (png((9, 9, 9, 255), "RGBA"), png((9, 255), "LA"), png(np.full((8, 8), 9, np.uint8))):
        assert decode_rgb(content, HERE).tolist() == np.full((8, 8, 3), 9).tolist()
    for content in (png((9, 9, 9, 254), "RGBA"), png_of(2, 8, bytes(8 * 8 * 3), (b"tRNS", bytes(6)))):
        one_line("has transparent pixels", lambda content=content: decode_rgb(content, HERE))
    one_line("16 bits", lambda: decode_rgb(png_of(0, 16, bytes(8 * 8 * 2)), HERE))


# folders

BESIDE = ("._000000.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._000000.png", "@eaDir/000000.png")


def test_files_that_systems_put_beside_images_are_ignored_everywhere(tmp_path: Path) -> None:
    plain = folder(tmp_path / "images")
    for name in BESIDE:
        (plain / name).parent.mkdir(exist_ok=True)
        (plain / name).write_bytes(b"\0\5\26\7")
    assert FolderSource(plain, recursive=True).n == ImageFolder(str(plain)).folder.n == 4
    with zipfile.ZipFile(tmp_path / "finder.zip", "w") as archive:
        for name in [f"digits/{path.name}" for path in plain.glob("0*.png")]:
            archive.writestr(name, png())
        for name in BESIDE:
            archive.writestr(f"digits/{name}", b"\0\5\26\7")
        archive.writestr("__MACOSX/digits/._000001.png", b"\0\5\26\7")
        labels = {"labels": [[f"{i:06d}.png", i] for i in range(4)]}
        archive.writestr("digits/dataset.json", "\ufeff" + json.dumps(labels))
    read = ImageZip(str(tmp_path / "finder.zip"), 8, 10)
    assert len(read.names) == 4 and read.labels is not None and read.labels.tolist() == [0, 1, 2, 3]


def test_linked_folders_and_upper_case_endings_are_counted(tmp_path: Path) -> None:
    both = folder(tmp_path / "both" / "a").parent
    (both / "b").symlink_to(folder(tmp_path / "elsewhere"), target_is_directory=True)
    (both / "a" / "9.PNG").write_bytes(png())
    assert FolderSource(both, recursive=True).n == ImageFolder(str(both), recursive=True).folder.n == 9
    one_line("PNGs only in subfolders; give recursive=true", lambda: FolderSource(both))


def test_only_upper_case_images_in_subfolders_get_the_hint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.PNG").write_bytes(png())
    one_line("give recursive=true", lambda: FolderSource(tmp_path))


def test_images_at_two_levels_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(folder(tmp_path / "top", 3) / "more", 2)
    with caplog.at_level(logging.WARNING):
        assert FolderSource(tmp_path / "top").n == 3
    (line,) = (record.getMessage() for record in caplog.records)
    assert "3 PNGs are counted, and 2 in subfolders are not: give recursive=true" in line


@pytest.mark.parametrize("name", ["9.jpg", "9.JPEG", "9.webp", "9.heic"])
def test_image_of_another_format_is_named_in_folders_and_archives(name: str, tmp_path: Path) -> None:
    (folder(tmp_path / "images") / name).write_bytes(b"")
    one_line(rf"{name}: not a PNG", lambda: FolderSource(tmp_path / "images"))
    one_line(rf"x\.zip/{name}: not a PNG", lambda: image_names(["0.png", name], Path("x.zip")))


def broken_link(directory: Path) -> str:
    (directory / "000000.png").unlink()
    (directory / "000000.png").symlink_to("/nowhere/0.png")
    return r"000000\.png: links to nowhere; remove it, or put the image there"


def loop(directory: Path) -> str:
    (directory / "again").symlink_to(directory, target_is_directory=True)
    return "again: is a link to a folder that holds it"


def pipe(directory: Path) -> str:
    os.mkfifo(directory / "9.png")
    return r"9\.png: is no file"


@pytest.mark.parametrize("entry", [broken_link, loop, pipe], ids=lambda entry: entry.__name__)
@pytest.mark.parametrize("reader", [FolderSource, ImageFolder, list_files], ids=["fid", "training", "geneval"])
def test_entry_that_cannot_be_read_is_named_by_every_reader(
    entry: Callable[[Path], str], reader: Any, tmp_path: Path
) -> None:
    message = entry(folder(tmp_path / "images"))
    one_line(message, lambda: reader(str(tmp_path / "images"), recursive=True) if reader is not list_files else
             reader(tmp_path / "images"))  # fmt: skip


def test_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(top: Path, onerror: Callable[[OSError], None], **_: object) -> list[Any]:
        onerror(PermissionError(13, "Permission denied", str(top / "secret")))
        return []

    monkeypatch.setattr(os, "walk", walk)
    one_line(r"secret: cannot be read \(Permission denied\)", lambda: FolderSource(tmp_path))


@pytest.mark.parametrize("damage", [lambda c: c.replace(b"IDAT", b"XDAT", 1), lambda c: c[:40] + bytes(20) + c[60:]])
def test_damaged_archive_is_one_line(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("0.png", png())
    (tmp_path / "x.zip").write_bytes(damage((tmp_path / "x.zip").read_bytes()))
    one_line(r"x\.zip", lambda: ImageZip(str(tmp_path / "x.zip"), 8, 0))


def test_archive_with_a_name_twice_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("0.png", png())
        archive.writestr("1.png", png(8))
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(b"1.png", b"0.png"))
    one_line(r"holds 0\.png twice", lambda: ImageZip(str(tmp_path / "x.zip"), 8, 0))
