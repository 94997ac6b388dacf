"""One verdict a line, in the schema of the official evaluator's results.jsonl:

    filename    <index>/samples/<ordinal>.png; the official one has the evaluator's own path before it
    tag, prompt
    correct     true or false
    reason      the complaints, one a line, "" if correct
    metadata    the prompt's metadata, a JSON text
    details     the kept boxes, {class: [[x_0, y_0, x_1, y_1, score], ...]}, a JSON text

so that the official summary_scores.py reads our files. The boxes of either evaluator's file can be judged again, see
json_detector.py.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fgm.data.text.geneval.prompts import Metadata
from fgm.utils.files import write_lines

Details = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Result:
    """The verdict on one image.

    Attributes:
        sample: index of the prompt and ordinal of the sample.
    """

    filename: str
    sample: tuple[int, int]
    metadata: Metadata
    correct: bool
    reason: str
    details: Details

    def line(self) -> str:
        row = {"filename": self.filename, "tag": self.metadata.tag, "prompt": self.metadata.prompt}
        row |= {"correct": self.correct, "reason": self.reason, "metadata": self.metadata.line()}
        return json.dumps(row | {"details": json.dumps(self.details)})


def write_results(path: Path, results: Iterable[Result]) -> None:
    write_lines(path, (result.line() for result in results))
