"""Detections that another tool wrote, by image, in a JSON or JSONL file.

    JSON     {IMAGE: [ENTRY, ...], ...}
    JSONL    {"filename": IMAGE, "detections": [ENTRY, ...]}          one image a line
             {"filename": IMAGE, "details": "{NAME: [[x_0, y_0, x_1, y_1, score], ...], ...}"}
    ENTRY    {"class": NAME, "box": [x_0, y_0, x_1, y_1], "score": S[, "color": COLOUR]}

The last form is the official evaluator's results.jsonl, so that its boxes can be judged again; it tells no colours. Of
an image's path the last three parts count: it may be absolute.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from fgm.data.text.geneval.vocabulary import GENEVAL, Vocabulary
from fgm.evaluation.geneval.detections import Detection, RecordedDetector
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_lines, read_text

HOLDS = "detections by image"


class JsonDetector(RecordedDetector):
    """A recorded detector read from a file.

    Args:
        path: the file; its suffix, .json or another one, says which form it has.
        vocabulary: the known classes and colours.
    """

    def __init__(self, path: Path | str, vocabulary: Vocabulary = GENEVAL) -> None:
        path = Path(path)
        detections: dict[str, list[Detection]] = {}
        for where, name, entries in read_images(path):
            key = "/".join(PurePosixPath(name).parts[-3:])
            if key in detections:
                raise UserError(f"{where}: {key} stands there twice; keep one")
            about = f"{where}, {key}"
            detections[key] = [parse_detection(e, f"{about}, entry {i}", vocabulary) for i, e in enumerate(entries)]
        super().__init__(f"detections from {path.name}", detections)


def read_images(path: Path) -> Iterator[tuple[str, str, list[Any]]]:
    """(where it stands, image's path, entries)."""
    if path.suffix == ".json":
        images = parse_object(read_text(path, HOLDS), str(path))
        for name, entries in images.items():
            yield str(path), name, as_entries(entries, f"{path}, {name}")
    else:
        for where, line in read_lines(path, HOLDS):
            row = parse_object(line, where)
            if not isinstance(row.get("filename"), str) or not row.keys() & {"detections", "details"}:
                raise UserError(f"{where}: needs filename and detections (or details, as in results.jsonl)")
            yield where, row["filename"], as_entries(row.get("detections", row.get("details")), where)


def as_entries(entries: Any, where: str) -> list[Any]:
    if isinstance(entries, str):
        return from_details(parse_object(entries, f"{where}, details"), f"{where}, details")
    if not isinstance(entries, list):
        raise UserError(f"{where}: must be a list of detections")
    return entries


def from_details(details: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The official form, {class: [[*box, score], ...]}."""
    try:
        return [{"class": cls, "box": box[:4], "score": box[4]} for cls, boxes in details.items() for box in boxes]
    except (TypeError, IndexError, KeyError) as error:
        raise UserError(f"{where}: must hold lists of [x_0, y_0, x_1, y_1, score] by class") from error


def parse_detection(entry: Any, where: str, vocabulary: Vocabulary) -> Detection:
    if not isinstance(entry, dict) or not {"class", "box", "score"} <= entry.keys():
        raise UserError(f"{where}: needs class, box and score")
    if entry["class"] not in vocabulary.classes:
        raise UserError(f"{where}: unknown class {entry['class']!r}; see fgm.data.text.geneval.vocabulary")
    if entry.get("color") not in (None, *vocabulary.colours):
        raise UserError(f"{where}: unknown color {entry['color']!r}; there are {', '.join(vocabulary.colours)}")
    try:
        x_0, y_0, x_1, y_1 = map(float, entry["box"])
        return Detection(entry["class"], (x_0, y_0, x_1, y_1), float(entry["score"]), colour=entry.get("color"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: box must be four finite numbers and score one in [0, 1]") from error
