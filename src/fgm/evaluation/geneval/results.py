"""One verdict a line, in the schema of the official evaluator's results.jsonl:

    filename    <index>/samples/<ordinal>.png; the official one has the evaluator's own path before it
    tag, prompt
    correct     true or false
    reason      the complaints, one a line, "" if correct
    metadata    the prompt's metadata, a JSON text
    details     the kept boxes, {class: [[x_0, y_0, x_1, y_1, score], ...]}, a JSON text

so that the official summary_scores.py reads our files and fgm reads the official ones.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fgm.errors import Refusal
from fgm.evaluation.geneval.prompts import Metadata, parse_metadata
from fgm.evaluation.geneval.vocabulary import GENEVAL, Vocabulary
from fgm.files import parse_object, read_lines, write_lines

SAMPLE = re.compile(r"(?:.*/)?(\d+)/samples/(\d+)\.png")
TYPES = {"filename": str, "correct": bool, "reason": str, "metadata": str, "details": str}
Details = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Result:
    """The verdict on one picture.

    Attributes:
        sample: index of the prompt and ordinal of the sample, as in the file's name.
    """

    filename: str
    metadata: Metadata
    correct: bool
    reason: str
    details: Details

    @property
    def sample(self) -> tuple[int, int]:
        named = SAMPLE.fullmatch(self.filename)
        if named is None:
            raise Refusal(f"{self.filename}: must end with <index>/samples/<ordinal>.png")
        return int(named[1]), int(named[2])

    def line(self) -> str:
        row = {"filename": self.filename, "tag": self.metadata.tag, "prompt": self.metadata.prompt}
        row |= {"correct": self.correct, "reason": self.reason, "metadata": self.metadata.line()}
        return json.dumps(row | {"details": json.dumps(self.details)})


def write_results(path: Path, results: Iterable[Result]) -> None:
    write_lines(path, (result.line() for result in results))


def read_results(path: Path, vocabulary: Vocabulary = GENEVAL) -> list[Result]:
    """All lines of a results.jsonl.

    Raises:
        Refusal: no such file, or a malformed line, whose number is named.
    """
    return [parse_result(line, where, vocabulary) for where, line in read_lines(path, "one verdict a line")]


def parse_result(line: str, where: str, vocabulary: Vocabulary) -> Result:
    row = parse_object(line, where)
    for key, kind in TYPES.items():
        if not isinstance(row.get(key), kind):
            raise Refusal(f"{where}: {key} = {row.get(key)!r} is no {kind.__name__}; is this a results.jsonl?")
    metadata = parse_metadata(row["metadata"], f"{where}, metadata", vocabulary)
    details = parse_object(row["details"], f"{where}, details")
    return Result(row["filename"], metadata, row["correct"], row["reason"], details)
