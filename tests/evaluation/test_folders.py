"""A folder of PNGs is read in the order of its names and identified by its pixels; a bad image is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fgm.evaluation.sources import DatasetSource, FolderSource, export_images
from fgm.utils.errors import UserError
from fgm.utils.random import keyed_generator


def exported(out: Path, layout: str = "png") -> Path:
    """25 grey images of 8 x 8 with labels."""
    images = torch.randint(256, (25, 1, 8, 8), generator=keyed_generator("folder", index=0), dtype=torch.uint8)
    export_images(DatasetSource(images, torch.arange(25) % 10, "noise"), out, layout, batch=10)
    return out


def png(path: Path, mode: str = "L", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new(mode, size).save(path)
    return path


def test_description_depends_on_pixels_and_labels_only(tmp_path: Path) -> None:
    one = FolderSource(exported(tmp_path / "a"))
    same = FolderSource(exported(tmp_path / "b", "edm"), recursive=True)
    assert one.describe() == same.describe() != FolderSource(tmp_path / "a", n=24).describe()
    (tmp_path / "a" / "dataset.json").unlink()
    assert FolderSource(tmp_path / "a").describe() != one.describe()


def truncate(folder: Path) -> str:
    path = folder / "000013.png"
    path.write_bytes(path.read_bytes()[:-20])
    return r"000013\.png: damaged PNG \(truncated\); create it again"


def no_png(folder: Path) -> str:
    (folder / "000013.png").write_text("hello")
    return r"000013\.png: damaged PNG \(does not begin as a PNG\)"


def corrupt(folder: Path) -> str:
    content = bytearray((folder / "000013.png").read_bytes())
    content[50] ^= 255
    (folder / "000013.png").write_bytes(bytes(content))
    return r"000013\.png: damaged PNG \(does not decode\)"


def another_size(folder: Path) -> str:
    png(folder / "000013.png", size=(9, 8))
    return r"000013\.png: is grey 9 x 8, but 000000\.png is grey 8 x 8"


def colour_among_grey(folder: Path) -> str:
    png(folder / "000013.png", "RGB")
    return r"000013\.png: is RGB 8 x 8, but 000000\.png is grey 8 x 8"


def alpha(folder: Path) -> str:
    png(folder / "000013.png", "RGBA")
    return r"000013\.png: has mode RGBA; convert"


def jpeg(folder: Path) -> str:
    png(folder / "000025.jpg", "L")
    return r"000025\.jpg: not a PNG"


def unlabelled(folder: Path) -> str:
    png(folder / "new.png")
    return r"dataset\.json: no label for new\.png"


def half_labels(folder: Path) -> str:
    labels = [[f"{i:06d}.png", i / 2] for i in range(25)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return r"dataset\.json: labels must be a list of \[name, integer\]"


DAMAGES = (truncate, no_png, corrupt, another_size, colour_among_grey, alpha, jpeg, unlabelled, half_labels)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_bad_image_is_a_user_error_that_names_it(damage: Callable[[Path], str], tmp_path: Path) -> None:
    message = damage(exported(tmp_path / "out"))
    with pytest.raises(UserError, match=message) as refusal:
        FolderSource(tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_grey_image_among_rgb_is_a_user_error(tmp_path: Path) -> None:
    png(tmp_path / "a.png", "RGB")
    png(tmp_path / "b.png", "L")
    with pytest.raises(UserError, match=r"b\.png: is grey 8 x 8, but a\.png is RGB 8 x 8"):
        FolderSource(tmp_path)


def test_too_few_images_are_a_user_error(tmp_path: Path) -> None:
    exported(tmp_path / "out")
    with pytest.raises(UserError, match="out: 25 PNGs, but n = 26 needed"):
        FolderSource(tmp_path / "out", n=26)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none: 0 PNGs, but at least one needed"):
        FolderSource(tmp_path / "none")


def test_subfolders_need_recursive(tmp_path: Path) -> None:
    out = exported(tmp_path / "out", "edm")
    with pytest.raises(UserError, match="PNGs only in subfolders; give recursive=true"):
        FolderSource(out)
    assert FolderSource(out, recursive=True).n == 25
    with pytest.raises(UserError, match="nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")


def test_first_n_files_in_sorted_order_are_read(tmp_path: Path) -> None:
    for value in (3, 1, 2):
        Image.new("L", (4, 4), value).save(tmp_path / f"{value}.png")
    assert FolderSource(tmp_path, n=2).take(range(2)).x[:, 0, 0, 0].tolist() == [1, 2]
