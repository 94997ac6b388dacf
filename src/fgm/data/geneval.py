"""GenEval's prompts (Ghosh et al., arXiv 2310.11513): one JSON object a line, as in prompts/evaluation_metadata.jsonl.

    {"tag": TAG, "include": [CLAUSE, ...], "exclude": [CLAUSE, ...], "prompt": TEXT}
    CLAUSE = {"class": NAME, "count": 1, 2, ...[, "color": COLOR][, "position": [RELATION, INDEX]]}

The index of a position names an EARLIER clause of include: the object is RELATION (left of, ...) that target. exclude is
optional, and its clauses have only class and count. The line number, counted from 0, is the index of the prompt and the
name of its folder. Unknown keys are errors: a misspelt "color" would silently make the prompt easier. The file is not
part of this package; users name the one of their checkout of github.com/djghosh13/geneval.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fgm.utils.errors import UserError, hint
from fgm.utils.files import parse_object, read_lines, stripped

# COCO's classes in COCO's order; mouse, remote and keyboard have longer names here, so detectors trained on COCO are
# read by the index of a label and never by its name.
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
COUNTING = "counting"
PROMPTS_PER_TAG = {
    "single_object": 80, "two_object": 99, COUNTING: 80, "colors": 94, "position": 100, "color_attr": 100,
}  # fmt: skip
TAGS = tuple(PROMPTS_PER_TAG)


@dataclass(frozen=True)
class Vocabulary:
    """The words that prompts and detectors may use."""

    classes: tuple[str, ...] = OBJECTS
    colors: tuple[str, ...] = COLORS
    tags: tuple[str, ...] = TAGS


GENEVAL = Vocabulary()


@dataclass(frozen=True)
class Clause:
    """Ask for `count` objects of class `cls`, optionally with a color and a (relation, index of an earlier clause)."""

    cls: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"class": self.cls, "count": self.count}
        row |= {"color": self.color} if self.color else {}
        return row | ({"position": list(self.position)} if self.position else {})


@dataclass(frozen=True)
class Metadata:
    """One prompt, and what a correct image of it shows."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def line(self) -> str:
        """Return the JSON object with its keys in the official order, without a line feed."""
        row: dict[str, Any] = {"tag": self.tag, "include": [clause.row() for clause in self.include]}
        row |= {"exclude": [clause.row() for clause in self.exclude]} if self.exclude else {}
        return json.dumps(row | {"prompt": self.prompt})


def read_prompts(path: Path, vocabulary: Vocabulary = GENEVAL) -> list[Metadata]:
    """Read and check a metadata file.

    Raises:
        UserError: the file is missing or empty, or a line is malformed or repeats a prompt; the message names the line.
    """
    prompts: dict[str, Metadata] = {}
    for where, line in read_lines(path, "prompts, as prompts/evaluation_metadata.jsonl of a GenEval checkout does"):
        metadata = parse_metadata(line, where, vocabulary)
        if metadata.prompt in prompts:
            raise UserError(f"{where}: the prompt {metadata.prompt!r} is a duplicate; remove one of them")
        prompts[metadata.prompt] = metadata
    return list(prompts.values())


def parse_metadata(text: str, where: str, vocabulary: Vocabulary = GENEVAL) -> Metadata:
    """Parse one JSON object; every error message starts with `where`."""
    row = parse_object(text, where)
    require_keys(row, {"tag", "prompt", "include"}, {"exclude"}, where)
    require_known("tag", row["tag"], vocabulary.tags, where)
    if not isinstance(row["prompt"], str) or not stripped(row["prompt"]):
        raise UserError(f"{where}: prompt must be a text with something to see")
    if row["include"] == []:
        raise UserError(f"{where}: include is empty, so every image would be correct")
    clauses = {}
    for key, optional in {"include": {"color", "position"}, "exclude": set[str]()}.items():
        items = row.get(key, [])
        if not isinstance(items, list):
            raise UserError(f"{where}: {key} must be a list")
        clauses[key] = []
        for i, item in enumerate(items):
            require_keys(item, {"class", "count"}, optional, f"{where}, {key}[{i}]")
            clauses[key].append(parse_clause(item, i, f"{where}, {key}[{i}]", vocabulary))
    return Metadata(row["tag"], row["prompt"], tuple(clauses["include"]), tuple(clauses["exclude"]))


def parse_clause(item: dict[str, Any], index: int, where: str, vocabulary: Vocabulary) -> Clause:
    require_known("class", item["class"], vocabulary.classes, where)
    count, color, position = item["count"], item.get("color"), item.get("position")
    if type(count) is not int or count < 1:
        raise UserError(f"{where}: count = {count!r} must be an integer of at least 1")
    if color is not None:
        require_known("color", color, vocabulary.colors, where)
    if position is None:
        return Clause(item["class"], count, color)
    if not isinstance(position, list) or len(position) != 2 or type(position[1]) is not int:
        raise UserError(f"{where}: position = {position!r} must be [relation, index of an earlier clause]")
    require_known("relation", position[0], RELATIONS, where)
    if not 0 <= position[1] < index:
        raise UserError(f"{where}: position refers to clause {position[1]}, which is not an earlier one")
    return Clause(item["class"], count, color, (position[0], position[1]))


def require_known(kind: str, name: Any, known: Collection[str], where: str) -> None:
    if name not in known:
        raise UserError(f"{where}: unknown {kind} {name!r}; {hint(str(name), known)}")


def require_keys(item: Any, required: set[str], optional: set[str], where: str) -> None:
    if not isinstance(item, dict):
        raise UserError(f"{where}: must be a JSON object, not {json.dumps(item)}")
    for key in sorted(required - item.keys()):
        raise UserError(f"{where}: {key} is missing")
    for key in sorted(item.keys() - required - optional):
        raise UserError(f"{where}: unknown key {key!r}; the keys are {', '.join(sorted(required | optional))}")


def has_official_counts(prompts: Sequence[Metadata]) -> bool:
    """Return whether every tag has as many prompts as in the official file of 553 prompts."""
    return Counter(metadata.tag for metadata in prompts) == PROMPTS_PER_TAG


def digest(prompts: Iterable[Metadata]) -> str:
    """Return eight hex digits that identify the prompts in a protocol."""
    return sha256("\n".join(metadata.line() for metadata in prompts).encode()).hexdigest()[:8]
