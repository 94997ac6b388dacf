"""Detections that were recorded: every form is read, every defect is one line that says where."""

import json
import re
from pathlib import Path

import pytest

from fgm.data.text.geneval.vocabulary import Vocabulary
from fgm.evaluation.geneval.detections import Detection
from fgm.evaluation.geneval.json_detector import JsonDetector
from fgm.utils.errors import UserError

KEY = "00003/samples/00001.png"
ENTRY = {"class": "tv remote", "box": [1, 2.5, 30, 40], "score": 0.75}


def told(detection: Detection) -> tuple[object, ...]:
    return detection.cls, detection.box, detection.score, detection.colour


def write(tmp_path: Path, name: str, *rows: object) -> Path:
    (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / name


def test_all_forms_tell_the_same(tmp_path: Path) -> None:
    details = json.dumps({"tv remote": [[*ENTRY["box"], ENTRY["score"]]]})
    files = [
        write(tmp_path, "a.json", {KEY: [ENTRY]}),
        write(tmp_path, "b.jsonl", {"filename": f"/somewhere/else/{KEY}", "detections": [ENTRY]}),
        write(
            tmp_path, "c.jsonl", {"filename": f"outputs/{KEY}", "tag": "counting", "correct": True, "details": details}
        ),
    ]
    for path in files:
        (detection,) = JsonDetector(path).recall(KEY)
        assert told(detection) == ("tv remote", (1.0, 2.5, 30.0, 40.0), 0.75, None)


def test_a_colour_is_read_and_a_protocol_told(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", {KEY: [ENTRY | {"color": "pink"}]})
    assert JsonDetector(path).recall(KEY)[0].colour == "pink"
    assert JsonDetector(path).protocol == "detections from a.json"


def test_nothing_found_is_not_never_looked(tmp_path: Path) -> None:
    detector = JsonDetector(write(tmp_path, "a.json", {KEY: []}))
    assert detector.recall(KEY) == []
    with pytest.raises(UserError, match=r"has no entry for 00004.*needs an empty list"):
        detector.recall("00004/samples/00001.png")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (ENTRY | {"class": "remote"}, "unknown class 'remote'"),
        (ENTRY | {"class": 65}, "unknown class 65"),
        (ENTRY | {"color": "grey"}, "unknown color 'grey'"),
        ({"class": "dog", "score": 0.5}, "needs class, box and score"),
        ("dog", "needs class, box and score"),
        (ENTRY | {"box": [1, 2, 3]}, "box must be four finite numbers"),
        (ENTRY | {"box": [1, 2, 3, 4, 0.9]}, "box must be four finite numbers"),
        (ENTRY | {"box": [1, 2, 3, float("nan")]}, "box must be four finite numbers"),
        (ENTRY | {"box": 3}, "box must be four finite numbers"),
        (ENTRY | {"box": [1, 2, 3, "x"]}, "box must be four finite numbers"),
        (ENTRY | {"score": 1.5}, "score one in [0, 1]"),
        (ENTRY | {"score": float("nan")}, "score one in [0, 1]"),
        (ENTRY | {"score": None}, "score one in [0, 1]"),
    ],
)
def test_a_bad_entry_is_named_by_file_picture_and_number(tmp_path: Path, entry: object, complaint: str) -> None:
    for path in (
        write(tmp_path, "a.json", {KEY: [ENTRY, entry]}),
        write(tmp_path, "a.jsonl", {"filename": KEY, "detections": [ENTRY, entry]}),
    ):
        with pytest.raises(UserError, match=re.escape(f"{KEY}, entry 1")) as refusal:
            JsonDetector(path)
        assert str(path) in str(refusal.value) and complaint in str(refusal.value)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            [{"filename": KEY, "detections": []}, {"filename": f"x/{KEY}", "detections": []}],
            "line 2: .* stands there twice",
        ),
        ([{"filename": KEY}], "line 1: needs filename and detections"),
        ([{"detections": []}], "line 1: needs filename and detections"),
        ([{"filename": KEY, "detections": {}}], "line 1: must be a list"),
        ([{"filename": KEY, "details": "{"}], "line 1, details: not JSON"),
        ([{"filename": KEY, "details": "[]"}], "line 1, details: must be a JSON object"),
        ([{"filename": KEY, "details": '{"dog": [[1, 2, 3, 4]]}'}], "line 1, details: must hold lists of"),
        ([{"filename": KEY, "details": '{"dog": 3}'}], "line 1, details: must hold lists of"),
        ([{"filename": KEY, "detections": []}, []], "line 2: must be a JSON object"),
        ([], "is empty: it should hold detections"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, rows: list[object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        JsonDetector(write(tmp_path, "a.jsonl", *rows))


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing: it should hold detections"):
        JsonDetector(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="must be a JSON object"):
        JsonDetector(write(tmp_path, "a.json", [ENTRY]))


def test_another_world_has_its_own_classes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", {KEY: [ENTRY | {"class": "circle"}]})
    assert JsonDetector(path, Vocabulary(("circle",))).recall(KEY)[0].cls == "circle"


@pytest.mark.parametrize(
    ("box", "score"), [((0, 0, 1, float("inf")), 0.5), ((0, 0, 1, 1), -0.1), ((0, 0, 1, 1), float("nan"))]
)
def test_a_detection_is_finite(box: tuple[float, float, float, float], score: float) -> None:
    with pytest.raises(ValueError, match="dog"):
        Detection("dog", box, score)
