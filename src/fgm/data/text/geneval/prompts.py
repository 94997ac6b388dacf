"""GenEval's prompt metadata: one JSON object a line, as in a checkout's prompts/evaluation_metadata.jsonl.

    {"tag": TAG, "include": [CLAUSE, ...], "exclude": [CLAUSE, ...], "prompt": TEXT}
    CLAUSE = {"class": NAME, "count": 1, 2, ...[, "color": COLOUR][, "position": [RELATION, INDEX]]}

The index of a position names an EARLIER clause of include: the object stands RELATION that target. exclude is optional
and holds class and count alone. A line's number from 0 is the prompt's index, and its folder's name. Unknown keys are
refused, since a misspelt "color" would silently ask for less. The file is not shipped: the user names a checkout.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fgm.data.text.geneval.vocabulary import GENEVAL, PROMPTS_PER_TAG, RELATIONS, Vocabulary
from fgm.utils.errors import UserError
from fgm.utils.files import parse_object, read_lines

CONDITIONS: dict[str, set[str]] = {"include": {"color", "position"}, "exclude": set()}


@dataclass(frozen=True)
class Clause:
    """At least count objects of class cls, all of the colour, all standing in the relation to an earlier clause."""

    cls: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"class": self.cls, "count": self.count}
        row |= {"color": self.colour} if self.colour else {}
        return row | ({"position": list(self.position)} if self.position else {})


@dataclass(frozen=True)
class Metadata:
    """One prompt and what its image must show."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def line(self) -> str:
        """The JSON object, keys in the official order, without a line's end."""
        row: dict[str, Any] = {"tag": self.tag, "include": [clause.row() for clause in self.include]}
        row |= {"exclude": [clause.row() for clause in self.exclude]} if self.exclude else {}
        return json.dumps(row | {"prompt": self.prompt})


def read_prompts(path: Path, vocabulary: Vocabulary = GENEVAL) -> list[Metadata]:
    """All lines of a metadata file, checked.

    Raises:
        UserError: no such file, an empty one, a repeated prompt or a malformed line, whose number is named.
    """
    prompts: dict[str, Metadata] = {}
    for where, line in read_lines(path, "prompts, as prompts/evaluation_metadata.jsonl of a GenEval checkout does"):
        metadata = parse_metadata(line, where, vocabulary)
        if metadata.prompt in prompts:
            raise UserError(f"{where}: the prompt {metadata.prompt!r} stands there twice; remove one of them")
        prompts[metadata.prompt] = metadata
    return list(prompts.values())


def parse_metadata(text: str, where: str, vocabulary: Vocabulary = GENEVAL) -> Metadata:
    """One JSON object; `where` opens every complaint."""
    row = parse_object(text, where)
    require_keys(row, {"tag", "prompt", "include"}, {"exclude"}, where)
    if row["tag"] not in vocabulary.tags:
        raise UserError(f"{where}: unknown tag {row['tag']!r}; there are {', '.join(vocabulary.tags)}")
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise UserError(f"{where}: prompt must be a text that is not empty")
    if row["include"] == []:
        raise UserError(f"{where}: include is empty, so that any image would do")
    include, exclude = (parse_clauses(row, key, where, vocabulary) for key in ("include", "exclude"))
    return Metadata(row["tag"], row["prompt"], include, exclude)


def parse_clauses(row: dict[str, Any], key: str, where: str, vocabulary: Vocabulary) -> tuple[Clause, ...]:
    clauses = row.get(key, [])
    if not isinstance(clauses, list):
        raise UserError(f"{where}: {key} must be a list")
    for i, item in enumerate(clauses):
        require_keys(item, {"class", "count"}, CONDITIONS[key], f"{where}, {key}[{i}]")
    return tuple(parse_clause(item, i, f"{where}, {key}[{i}]", vocabulary) for i, item in enumerate(clauses))


def parse_clause(item: dict[str, Any], index: int, where: str, vocabulary: Vocabulary) -> Clause:
    if item["class"] not in vocabulary.classes:
        raise UserError(f"{where}: unknown class {item['class']!r}; see fgm.data.text.geneval.vocabulary")
    if type(item["count"]) is not int or item["count"] < 1:
        raise UserError(f"{where}: count = {item['count']!r} must be a whole number from 1")
    if item.get("color") not in (None, *vocabulary.colours):
        raise UserError(f"{where}: unknown color {item['color']!r}; there are {', '.join(vocabulary.colours)}")
    return Clause(item["class"], item["count"], item.get("color"), parse_position(item.get("position"), index, where))


def parse_position(position: Any, index: int, where: str) -> tuple[str, int] | None:
    if position is None:
        return None
    if not isinstance(position, list) or len(position) != 2 or type(position[1]) is not int:
        raise UserError(f"{where}: position = {position!r} must be [relation, index of an earlier clause]")
    if position[0] not in RELATIONS:
        raise UserError(f"{where}: unknown relation {position[0]!r}; there are {', '.join(RELATIONS)}")
    if not 0 <= position[1] < index:
        raise UserError(f"{where}: position names clause {position[1]}, which is not an earlier one")
    return position[0], position[1]


def require_keys(item: Any, required: set[str], optional: set[str], where: str) -> None:
    if not isinstance(item, dict):
        raise UserError(f"{where}: must be a JSON object, not {json.dumps(item)}")
    for key in sorted(required - item.keys()):
        raise UserError(f"{where}: {key} is missing")
    for key in sorted(item.keys() - required - optional):
        raise UserError(f"{where}: unknown key {key!r}; there are {', '.join(sorted(required | optional))}")


def has_official_counts(prompts: Sequence[Metadata]) -> bool:
    """Whether there are as many prompts per tag as in the official file: 553 in all."""
    return Counter(metadata.tag for metadata in prompts) == PROMPTS_PER_TAG


def digest(prompts: Iterable[Metadata]) -> str:
    """Eight hex digits that name a set of prompts in a protocol."""
    return sha256("\n".join(metadata.line() for metadata in prompts).encode()).hexdigest()[:8]
