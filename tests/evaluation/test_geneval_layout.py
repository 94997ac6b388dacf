"""The folder layout: what is written is read bit for bit, and what is not whole is refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from geneval_files import write_layout
from PIL import Image

from fgm.data.text.geneval.grammar import generate_prompts
from fgm.evaluation.geneval.detections import Pixels
from fgm.evaluation.geneval.layout import read_layout, read_png, write_sample
from fgm.utils.errors import UserError

PROMPTS = generate_prompts(seed=1)[::50]  # twelve, of all tags


def noise(index: int, ordinal: int) -> Pixels:
    return np.random.default_rng([index, ordinal]).integers(0, 256, (5 + ordinal, 7, 3), dtype=np.uint8)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_layout(tmp_path / "pictures", PROMPTS, noise, per_prompt=3)
    return tmp_path / "pictures"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_is_written_is_read_bit_for_bit(directory: Path, tmp_path: Path) -> None:
    samples = read_layout(directory, PROMPTS, per_prompt=3)
    assert [(s.index, s.ordinal) for s in samples] == [(i, k) for i in range(len(PROMPTS)) for k in range(3)]
    assert all(np.array_equal(sample.pixels(), noise(sample.index, sample.ordinal)) for sample in samples)
    pictures = {(sample.index, sample.ordinal): sample.pixels() for sample in samples}
    write_layout(tmp_path / "again", PROMPTS, lambda index, ordinal: pictures[index, ordinal], per_prompt=3)
    assert contents(tmp_path / "again") == contents(directory)


def test_the_layout_is_the_official_one(directory: Path) -> None:
    names = {f"{i:05d}/samples/{k:05d}.png" for i in range(len(PROMPTS)) for k in range(3)}
    assert set(contents(directory)) == names | {f"{i:05d}/metadata.jsonl" for i in range(len(PROMPTS))}
    assert (directory / "00004" / "metadata.jsonl").read_text() == PROMPTS[4].line()
    assert read_layout(directory, PROMPTS, 3)[4].key == "00001/samples/00001.png"


def test_other_writers_are_read_too(directory: Path) -> None:
    """Four digits, other file names, grids, key order: all seen in published sets."""
    for i, metadata in enumerate(PROMPTS):
        folder = (directory / f"{i:05d}").rename(directory / f"{i:04d}")
        for k in range(3):
            (folder / "samples" / f"{k:05d}.png").rename(folder / "samples" / f"{k}.png")
        shutil.copy(folder / "samples" / "0.png", folder / "grid.png")
        (folder / "samples" / "0.png.part").write_text("")
        (folder / "metadata.jsonl").write_text(json.dumps(json.loads(metadata.line()), sort_keys=True) + "\n")
    (directory / "notes").mkdir()
    samples = read_layout(directory, PROMPTS, per_prompt=3)
    assert samples[-1].key == "0011/samples/2.png" and len(samples) == 36


def break_prompts(directory: Path) -> None:
    for i in (1, 2, 5, 7):
        shutil.rmtree(directory / f"{i:05d}")


def break_samples(directory: Path) -> None:
    for i in (3, 4, 8, 9):
        (directory / f"{i:05d}" / "samples" / "00002.png").unlink()


def add_prompt(directory: Path) -> None:
    shutil.copytree(directory / "00000", directory / "00012")


def add_sample(directory: Path) -> None:
    shutil.copy(directory / "00006" / "samples" / "00000.png", directory / "00006" / "samples" / "00003.png")


def double(directory: Path) -> None:
    shutil.copytree(directory / "00006", directory / "0006")


def forget_metadata(directory: Path) -> None:
    (directory / "00006" / "metadata.jsonl").unlink()


def swap_metadata(directory: Path) -> None:
    shutil.copy(directory / "00000" / "metadata.jsonl", directory / "00006" / "metadata.jsonl")


def spoil_metadata(directory: Path) -> None:
    (directory / "00006" / "metadata.jsonl").write_text("{")


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            break_prompts,
            "4 of 12 prompts are missing: 00001, 00002, 00005 and 1 more; it should hold 12 prompts with 3",
        ),
        (
            break_samples,
            "4 of 36 samples are missing: 00003/samples/00002, .* 00008/samples/00002 and 1 more; it should",
        ),
        (add_prompt, "3 samples are too many: 00012/samples/00000, "),
        (add_sample, "1 samples are too many: 00006/samples/00003; it should hold 12 prompts with 3 samples each"),
        (double, "3 samples are there twice: 00006/samples/00000, "),
        (forget_metadata, "00006/metadata.jsonl is missing: it should hold the metadata of"),
        (swap_metadata, "00006/metadata.jsonl: is not the metadata of .* made for other prompts"),
        (spoil_metadata, "00006/metadata.jsonl: not JSON"),
        (empty, "12 of 12 prompts are missing: 00000, 00001, 00002 and 9 more"),
        (shutil.rmtree, "pictures is missing: it should hold folders"),
    ],
)
def test_an_incomplete_set_is_refused(directory: Path, damage: Callable[[Path], None], complaint: str) -> None:
    damage(directory)
    with pytest.raises(UserError, match=complaint):
        read_layout(directory, PROMPTS, per_prompt=3)


def test_fewer_samples_than_asked_for_are_refused(directory: Path) -> None:
    with pytest.raises(UserError, match="12 of 48 samples are missing"):
        read_layout(directory, PROMPTS, per_prompt=4)


def test_a_folder_is_not_given_to_another_prompt(directory: Path) -> None:
    before = contents(directory)
    with pytest.raises(UserError, match=r"00000/metadata\.jsonl: is not the metadata of"):
        write_sample(directory, 0, 0, PROMPTS[1], noise(0, 0))
    assert contents(directory) == before


def test_a_write_that_fails_leaves_the_old_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(directory)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_sample(directory, 0, 0, PROMPTS[0], noise(1, 1))
    monkeypatch.undo()
    assert before.items() <= contents(directory).items()
    assert len(read_layout(directory, PROMPTS, per_prompt=3)) == 36


def test_a_truncated_png_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = write_sample(tmp_path, 0, 0, PROMPTS[0], noise(0, 0))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=re.escape(f"{path}: damaged PNG")):
            read_png(path)
    path.write_bytes(whole)
    assert np.array_equal(read_png(path), noise(0, 0))


def test_other_files_are_no_png(tmp_path: Path) -> None:
    Image.fromarray(noise(0, 0)).save(tmp_path / "0.jpg", "JPEG")
    (tmp_path / "0.jpg").rename(tmp_path / "0.png")
    for path in (tmp_path / "0.png", tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(UserError, match="damaged PNG"):
            read_png(path)


def test_a_picture_that_is_larger_than_any_is_refused_unopened(tmp_path: Path) -> None:
    """200,000 x 200,000 pixels by its header: Pillow would not unpack it, and says so by an error of its own kind."""
    content = bytearray(write_sample(tmp_path, 0, 0, PROMPTS[0], noise(0, 0)).read_bytes())
    content[16:24] = 2 * (200_000).to_bytes(4)
    content[29:33] = crc32(content[12:29]).to_bytes(4)
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(UserError, match=r"0\.png: damaged PNG \(does not decode\)"):
        read_png(tmp_path / "0.png")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_all_kinds_of_png_become_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode)
    picture.save(tmp_path / "0.png")
    assert np.array_equal(read_png(tmp_path / "0.png"), np.full((4, 6, 3), 255))
