"""GenEval's folder of images: what is written is read bit for bit, and an incomplete folder has no score."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from geneval_files import correct_detections, example_prompts, write_layout
from PIL import Image

from fgm.data.geneval import Vocabulary
from fgm.data.pixels import decode_rgb, read_image
from fgm.evaluation.geneval.folder import RecordedDetections, read_layout, score_folder, write_sample
from fgm.evaluation.geneval.metric import GenEval
from fgm.evaluation.geneval.rules import Detection, Pixels
from fgm.utils.errors import UserError
from fgm.utils.files import write_lines

PROMPTS = example_prompts(2)  # twelve, of all tags


def read_pixels(path: Path) -> Pixels:
    return decode_rgb(read_image(path), path)


def noise(index: int, ordinal: int) -> Pixels:
    return np.random.default_rng([index, ordinal]).integers(0, 256, (5 + ordinal, 7, 3), dtype=np.uint8)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_layout(tmp_path / "images", PROMPTS, noise, per_prompt=3)
    return tmp_path / "images"


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def oracle(wrong: int = -1) -> RecordedDetections:
    """Correct detections in every image but those of ordinal `wrong`."""
    keys = {f"{i:05d}/samples/{k:05d}.png": (i, k) for i in range(len(PROMPTS)) for k in range(3)}
    found = {key: [] if k == wrong else correct_detections(PROMPTS[i]) for key, (i, k) in keys.items()}
    return RecordedDetections("oracle", found)


def test_layout_is_the_official_one(directory: Path) -> None:
    names = {f"{i:05d}/samples/{k:05d}.png" for i in range(len(PROMPTS)) for k in range(3)}
    assert set(contents(directory)) == names | {f"{i:05d}/metadata.jsonl" for i in range(len(PROMPTS))}
    assert (directory / "00004" / "metadata.jsonl").read_text() == PROMPTS[4].line()


def test_images_roundtrip_bit_for_bit(directory: Path) -> None:
    samples = read_layout(directory, PROMPTS, per_prompt=3)
    assert [(s.index, s.ordinal) for s in samples] == [(i, k) for i in range(len(PROMPTS)) for k in range(3)]
    assert all(np.array_equal(sample.pixels(), noise(sample.index, sample.ordinal)) for sample in samples)


def test_folders_of_other_writers_are_read(directory: Path) -> None:
    """Four digits, other file names, grids, other key order: all of them occur in published sets."""
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


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda d: (shutil.copytree if (d / source).is_dir() else shutil.copy)(d / source, d / target)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda d: [shutil.rmtree(d / f"{i:05d}") for i in (1, 2, 5, 7)],
     "4 of 12 prompts are missing: 00001, 00002, 00005 and 1 more; it should hold 12 prompts with 3 samples each"),
    (lambda d: [(d / f"{i:05d}/samples/00002.png").unlink() for i in (3, 4, 8, 9)],
     "4 of 36 samples are missing: 00003/samples/00002, 00004/samples/00002, 00008/samples/00002 and 1 more; "),
    (copy("00000", "00012"), "3 samples are unexpected: 00012/samples/00000, "),
    (copy("00006/samples/00000.png", "00006/samples/00003.png"), "1 samples are unexpected: 00006/samples/00003; "),
    (copy("00006", "0006"), "3 samples are duplicates: 00006/samples/00000, "),
    (lambda d: (d / "00006/metadata.jsonl").unlink(), "00006/metadata.jsonl is missing: it should hold the metadata"),
    (copy("00000/metadata.jsonl", "00006/metadata.jsonl"), "00006/metadata.jsonl: is not the metadata of"),
    (lambda d: (d / "00006/metadata.jsonl").write_text("{"), "00006/metadata.jsonl: not JSON"),
    (lambda d: [shutil.rmtree(path) for path in d.iterdir()], "12 of 12 prompts are missing: 00000, 00001, 00002 and"),
    (shutil.rmtree, "images is missing: it should hold folders"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_incomplete_folder_is_an_error(directory: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(directory)
    with pytest.raises(UserError, match=re.escape(message)):
        score_folder(GenEval(oracle()), directory, PROMPTS, per_prompt=3)


def test_folder_of_one_prompt_takes_no_image_of_another(directory: Path) -> None:
    before = contents(directory)
    with pytest.raises(UserError, match=r"00000/metadata\.jsonl: is not the metadata of"):
        write_sample(directory, 0, 0, PROMPTS[1], noise(0, 0))
    assert contents(directory) == before


def test_failed_write_leaves_the_old_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(directory)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_sample(directory, 0, 0, PROMPTS[0], noise(1, 1))
    assert before.items() <= contents(directory).items()


def test_truncated_png_is_an_error_wherever_it_ends(tmp_path: Path) -> None:
    path = write_sample(tmp_path, 0, 0, PROMPTS[0], noise(0, 0))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=re.escape(f"{path}: damaged PNG")):
            read_pixels(path)
    oversized = bytearray(content)
    oversized[16:24] = 2 * (200_000).to_bytes(4)  # 200,000 x 200,000 pixels by its header
    oversized[29:33] = crc32(oversized[12:29]).to_bytes(4)
    Image.fromarray(noise(0, 0)).save(tmp_path / "jpeg.png", "JPEG")
    path.write_bytes(oversized)
    for other in (path, tmp_path / "jpeg.png"):
        with pytest.raises(UserError, match="damaged PNG"):
            read_pixels(other)
    for other in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_pixels(other)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_png_of_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode).save(tmp_path / "0.png")
    assert np.array_equal(read_pixels(tmp_path / "0.png"), np.full((4, 6, 3), 255))


def test_score_is_the_share_of_correct_images(directory: Path) -> None:
    for wrong, value in ((-1, 1.0), (2, 2 / 3)):
        scores = score_folder(GenEval(oracle(wrong)), directory, PROMPTS, 3).scores
        assert (scores.overall, scores.prompts, len(scores.tags)) == (pytest.approx(value), 1, 6)


def test_recorded_detections_need_no_pixels(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgm.evaluation.geneval.folder.decode_rgb", lambda _, path: pytest.fail(f"decoded {path}"))
    assert score_folder(GenEval(oracle()), directory, PROMPTS, 3).scores.overall == 1


def test_detector_gets_the_pixels_of_every_image(directory: Path) -> None:
    class Brightness:
        protocol = "brightness"

        def detect(self, image: Pixels) -> list[Detection]:
            return [Detection("dog", (0, 0, 8, 8), 0.5 + float(image.mean()) / 1000)]

    for row in score_folder(GenEval(Brightness()), directory, PROMPTS, 3).results:
        index, ordinal = int(row["filename"][:5]), int(row["filename"][-9:-4])
        expected = {"dog": [[0, 0, 8, 8, 0.5 + float(noise(index, ordinal).mean()) / 1000]]}
        assert json.loads(row["details"]) == ({} if row["tag"] == "counting" else expected)


def test_results_have_the_official_keys_and_can_be_graded_again(tmp_path: Path) -> None:
    plain = [metadata for metadata in PROMPTS if not any(clause.color for clause in metadata.include)]
    write_layout(tmp_path / "plain", plain, noise, per_prompt=1)
    found = {f"{i:05d}/samples/00000.png": correct_detections(m) for i, m in enumerate(plain)}
    rows = score_folder(GenEval(RecordedDetections("oracle", found)), tmp_path / "plain", plain, 1).results
    assert list(rows[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert json.loads(rows[0]["metadata"])["prompt"] == rows[0]["prompt"] == plain[0].prompt
    write_lines(tmp_path / "results.jsonl", map(json.dumps, rows))
    recorded = RecordedDetections.from_file(tmp_path / "results.jsonl")
    assert score_folder(GenEval(recorded), tmp_path / "plain", plain, 1).results == rows


def test_what_defines_a_score_has_the_pixels_and_the_prompts(directory: Path) -> None:
    before = score_folder(GenEval(oracle()), directory, PROMPTS, 3).source
    assert before == score_folder(GenEval(oracle(2)), directory, PROMPTS, 3).source and before["per_prompt"] == 3
    write_sample(directory, 0, 0, PROMPTS[0], noise(1, 1))
    assert score_folder(GenEval(oracle()), directory, PROMPTS, 3).source != before


# recorded detections: both formats are read, and every defect is one line that names its place

KEY = "00003/samples/00001.png"
ENTRY = {"class": "tv remote", "box": [1, 2.5, 30, 40], "score": 0.75}


def write_rows(tmp_path: Path, name: str, *rows: object) -> Path:
    (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / name


def test_both_formats_have_the_same_content(tmp_path: Path) -> None:
    details = json.dumps({"tv remote": [[*ENTRY["box"], ENTRY["score"]]]})
    official = {"filename": f"/elsewhere/{KEY}", "tag": "counting", "correct": True, "details": details}
    for path in write_rows(tmp_path, "a.json", {KEY: [ENTRY]}), write_rows(tmp_path, "results.jsonl", official):
        recorded = RecordedDetections.from_file(path)
        (found,) = recorded.recall(KEY)
        assert (found.cls, found.box, found.score, found.color) == ("tv remote", (1.0, 2.5, 30.0, 40.0), 0.75, None)
        assert recorded.protocol == f"detections from {path.name}"


def test_colors_and_other_vocabularies_are_read(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "a.json", {KEY: [ENTRY | {"class": "circle", "color": "pink"}]})
    (found,) = RecordedDetections.from_file(path, Vocabulary(("circle",))).recall(KEY)
    assert (found.cls, found.color) == ("circle", "pink")


def test_image_without_an_entry_differs_from_one_without_objects(tmp_path: Path) -> None:
    recorded = RecordedDetections.from_file(write_rows(tmp_path, "a.json", {KEY: []}))
    assert recorded.recall(KEY) == []
    with pytest.raises(UserError, match=r"no entry for 00004.*needs an empty one"):
        recorded.recall("00004/samples/00001.png")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ENTRY | {"class": "remote"}, "unknown class 'remote'"),
        (ENTRY | {"class": 65}, "unknown class 65"),
        (ENTRY | {"color": "grey"}, "unknown color 'grey'"),
        ({"class": "dog", "score": 0.5}, "box is missing"),
        ("dog", "must be a JSON object"),
        (ENTRY | {"box": [1, 2, 3]}, "box must be four finite numbers"),
        (ENTRY | {"box": [1, 2, 3, float("nan")]}, "box must be four finite numbers"),
        (ENTRY | {"box": 3}, "box must be four finite numbers"),
        (ENTRY | {"box": [1, 2, 3, "x"]}, "box must be four finite numbers"),
        (ENTRY | {"score": 1.5}, "score one in [0, 1]"),
        (ENTRY | {"score": float("nan")}, "score one in [0, 1]"),
        (ENTRY | {"score": None}, "score one in [0, 1]"),
    ],
)
def test_bad_entry_is_named_by_file_image_and_number(tmp_path: Path, entry: object, message: str) -> None:
    path = write_rows(tmp_path, "a.json", {KEY: [ENTRY, entry]})
    with pytest.raises(UserError, match=re.escape(f"{path}, {KEY}, entry 1")) as error:
        RecordedDetections.from_file(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.json", [{KEY: {}}], f"{KEY}: must be a list of detections"),
        ("a.json", [[ENTRY]], "must be a JSON object"),
        ("a.json", [{KEY: [], f"x/{KEY}": []}], f"{KEY} is a duplicate"),
        ("a.jsonl", [{"filename": KEY, "details": "{}"}, {"filename": f"x/{KEY}", "details": "{}"}], "line 2: "),
        ("a.jsonl", [{"filename": KEY}], "line 1: needs the texts filename and details"),
        ("a.jsonl", [{"filename": KEY, "details": "{"}], "line 1, details: not JSON"),
        ("a.jsonl", [{"filename": KEY, "details": '{"dog": [[1, 2, 3, 4]]}'}], "line 1, details: must be lists of"),
        ("a.jsonl", [{"filename": KEY, "details": '{"dog": 3}'}], "line 1, details: must be lists of"),
        ("a.jsonl", [], "is empty: it should hold detections"),
    ],
)
def test_bad_file_is_named_with_its_line(tmp_path: Path, name: str, rows: list[object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        RecordedDetections.from_file(write_rows(tmp_path, name, *rows))


@pytest.mark.parametrize(("box", "score"), [((0, 0, 1, float("inf")), 0.5), ((0, 0, 1, 1), -0.1), ((0, 0, 1), 0.5)])
def test_detections_are_finite(box: tuple[float, float, float, float], score: float) -> None:
    with pytest.raises(ValueError, match="dog"):
        Detection("dog", box, score)
