"""Records of runs: measurements, the rows of runs.jsonl, and learning curves.

A row is one finished run:

    experiment, commit, config_digest, seed, images_seen, wall_s, device, date, results
    differs (overrides, if there are any), precision (what trainer.precision = auto meant on the device)

and each result is a Measurement, which has a protocol and n. Rows are appended, never edited. Rows of a study's runs also
have what was swept and learning curves; a run that failed is a row with the reason and without results:

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
    """A measured number and its meaning.

    Attributes:
        metric: short lower-case word.
        value: in the metric's own unit.
        n: number of samples behind it.
        nfe: network evaluations a sample; 0 for real data.
        protocol: everything else that defines the value.
        weights: ema (exported), ema_<half-life> (another average), raw, teacher, start (a generator of several steps,
            untrained), real for data, or folder for pictures of unknown origin.
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
                f"{self.metric} = {self.value} needs a protocol and n: a value is never shown without them"
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
    """Return "one step" or "50 steps"."""
    return f"one {what}" if n == 1 else f"{n} {what}s"


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line to runs.jsonl, which is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # in one call, so that two processes' lines do not mix
        file.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read runs.jsonl; rows of earlier versions say "1 threads", and "recipe" for the experiment."""
    text = path.read_text().replace('"cpu, 1 threads"', '"cpu, 1 thread"') if path.exists() else ""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{"experiment" if key == "recipe" else key: value for key, value in row.items()} for row in rows]


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read a run's metrics.csv in the order of its steps; no rows if the run logged nothing."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["step"]))


def read_curves(path: Path, most: int = 64) -> dict[str, list[list[float]]]:
    """Read curves from metrics.csv: {column: [[images_seen, value], ...]}, four digits, about `most` points."""
    rows = read_metrics(path)
    counted = [row for row in rows if row.get("images_seen")]
    if not counted:
        return {}
    images = float(counted[-1]["images_seen"]) / (int(counted[-1]["step"]) + 1)  # per step; steps count from 0
    names = [name for name in rows[0] if name in CURVES or name.startswith("eval/")]
    curves = {name: [[images * (int(r["step"]) + 1), four_digits(r[name])] for r in rows if r[name]] for name in names}
    return {name: curve[:: len(curve) // most + 1] for name, curve in curves.items() if curve}


def four_digits(text: str) -> float:
    return float(f"{float(text):.4g}")
