"""What was run: measurements, the rows of runs.jsonl, and the Markdown tables made from them.

A row is one finished run:

    recipe, commit, config_digest, seed, images_seen, wall_s, device, date, results

and each result is a Measurement. Rows are appended, never edited. A value without protocol and n is refused.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Measurement:
    """One number and what it means.

    Attributes:
        metric: short lower-case word.
        value: in the metric's own unit.
        n: number of samples behind it.
        nfe: network evaluations a sample; 0 for real data.
        protocol: everything else that defines the value.
        weights: ema, raw, teacher, start (a generator of several steps, untrained), real for data, or folder for
            pictures of unknown origin.
        extra: numbers beside the value: ci95, tags and the like.
    """

    metric: str
    value: float
    n: int
    protocol: str
    nfe: int = 0
    weights: str = "real"
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.protocol or self.n < 1:
            raise ValueError(
                f"{self.metric} = {self.value} has no protocol or no n: a value is never shown without them"
            )

    def row(self) -> dict[str, Any]:
        row = asdict(self)
        return row | row.pop("extra")

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        extra = {key: value for key, value in row.items() if key not in known}
        return cls(**{key: value for key, value in row.items() if key in known}, extra=extra)


def steps_named(nfe: int) -> str:
    """How pictures and tables call a generator of so many network evaluations."""
    return "one step" if nfe == 1 else f"{nfe} steps"


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line to runs.jsonl, creating it if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []
