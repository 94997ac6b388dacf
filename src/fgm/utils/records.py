"""What was run: measurements, the rows of runs.jsonl, and the curves beside them.

A row is one finished run:

    recipe, commit, config_digest, seed, images_seen, wall_s, device, date, results
    differs (overrides, of a run that is not as its recipe is written)

and each result is a Measurement. Rows are appended, never edited. A value without protocol and n is refused. Rows of a
study's runs also say what was swept, and bring their learning curves; a run of it that failed is a row without results
that says why:

    study, swept, metrics, sweep_digest; curves, or failed
"""

import csv
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from fgm.utils.files import replacing

CURVES = ("mismatch", "fgm_loss", "online_loss", "loss", "generator_grad_norm", "online_grad_norm")


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


def counted(n: int, what: str) -> str:
    """one step, 50 steps: how pictures, tables and cards say a number of them."""
    return f"one {what}" if n == 1 else f"{n} {what}s"


def write_json(path: Path, content: Any) -> None:
    """Atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line to runs.jsonl, creating it if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # in one call, so that two processes' lines do not mix
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Those of earlier versions speak of 1 threads."""
    text = path.read_text().replace('"cpu, 1 threads"', '"cpu, 1 thread"') if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a run's metrics.csv by their step; none of a run that logged nothing."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["step"]))


def read_curves(path: Path, most: int = 64) -> dict[str, list[list[float]]]:
    """What metrics.csv says of learning: {column: [[images_seen, value], ...]}, four digits, about `most` points."""
    rows = read_metrics(path)
    counted = [row for row in rows if row.get("images_seen")]
    if not counted:
        return {}
    images = float(counted[-1]["images_seen"]) / (int(counted[-1]["step"]) + 1)  # a cycle; step counts from 0
    names = [name for name in rows[0] if name in CURVES or name.startswith("eval/")]
    curves = {name: [[images * (int(r["step"]) + 1), four_digits(r[name])] for r in rows if r[name]] for name in names}
    return {name: curve[:: len(curve) // most + 1] for name, curve in curves.items() if curve}


def four_digits(text: str) -> float:
    return float(f"{float(text):.4g}")
