"""Recorded detections: both file formats are read, and every defect is one line that names its place."""

import json
import re
from pathlib import Path

import pytest

from fgm.data.geneval import Vocabulary
from fgm.evaluation.geneval.folder import RecordedDetections
from fgm.evaluation.geneval.rules import Detection
from fgm.utils.errors import UserError

KEY = "00003/samples/00001.png"
ENTRY = {"class": "tv remote", "box": [1, 2.5, 30, 40], "score": 0.75}


def write(tmp_path: Path, name: str, *rows: object) -> Path:
    (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / name


def test_both_formats_have_the_same_content(tmp_path: Path) -> None:
    details = json.dumps({"tv remote": [[*ENTRY["box"], ENTRY["score"]]]})
    official = {"filename": f"/elsewhere/{KEY}", "tag": "counting", "correct": True, "details": details}
    for path in write(tmp_path, "a.json", {KEY: [ENTRY]}), write(tmp_path, "results.jsonl", official):
        recorded = RecordedDetections.from_file(path)
        (found,) = recorded.recall(KEY)
        assert (found.cls, found.box, found.score, found.color) == ("tv remote", (1.0, 2.5, 30.0, 40.0), 0.75, None)
        assert recorded.protocol == f"detections from {path.name}"


def test_colors_and_other_vocabularies_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", {KEY: [ENTRY | {"class": "circle", "color": "pink"}]})
    (found,) = RecordedDetections.from_file(path, Vocabulary(("circle",))).recall(KEY)
    assert (found.cls, found.color) == ("circle", "pink")


def test_image_without_an_entry_differs_from_one_without_objects(tmp_path: Path) -> None:
    recorded = RecordedDetections.from_file(write(tmp_path, "a.json", {KEY: []}))
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
    path = write(tmp_path, "a.json", {KEY: [ENTRY, entry]})
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
        RecordedDetections.from_file(write(tmp_path, name, *rows))


@pytest.mark.parametrize(("box", "score"), [((0, 0, 1, float("inf")), 0.5), ((0, 0, 1, 1), -0.1), ((0, 0, 1), 0.5)])
def test_detections_are_finite(box: tuple[float, float, float, float], score: float) -> None:
    with pytest.raises(ValueError, match="dog"):
        Detection("dog", box, score)
