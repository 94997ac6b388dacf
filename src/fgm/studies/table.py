"""A study as Markdown: a line for each point, mean and standard deviation over the seeds, the best mean in bold.

The tables are made of the rows alone, whatever has become of the sweep's own file.
"""

import math
from collections.abc import Sequence
from typing import Any

from fgm.studies.points import label, short
from fgm.studies.rows import Cell, Study, reference_name, studies_of


def table_of_study(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [line for study in studies_of(rows) for line in [*lines_of(study), ""]]


def lines_of(study: Study) -> list[str]:
    metrics = [metric for metric in study.metrics if any(cell.values(metric) for cell in study.cells)]
    columns = [*(short(axis, study.axes) for axis in study.axes), *metrics, "seeds", "training"]
    head = [title(study), "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return [*head, *(line_of(cell, study, metrics) for cell in study.cells), *below(study, metrics)]


def title(study: Study) -> str:
    counts = f"{len(study.runs)} runs of {len(study.cells)} points"
    failed = f", {len(study.failed)} failed" if study.failed else ""
    device = f" on {study.runs[-1]['device']}" if study.runs else ""
    fixed = f", {label(study.fixed)}" if study.fixed else ""
    return f"**{study.name}** of {study.recipe}{fixed}, {counts}{failed}{device}"


def line_of(cell: Cell, study: Study, metrics: Sequence[str]) -> str:
    swept = [str(value) for value in cell.swept.values()]
    cost = f"{cell.seconds:.0f} s" if cell.runs else ""
    return f"| {' | '.join([*swept, *(told(cell, study, m) for m in metrics), seeds(cell), cost])} |"


def told(cell: Cell, study: Study, metric: str) -> str:
    mean = cell.mean(metric)
    if math.isnan(mean):
        return "failed" if cell.failed else ""
    text = spread(mean, cell.spread(metric))
    return f"**{text}**" if metric == study.metric and cell is study.best else text


def spread(mean: float, sd: float) -> str:
    return f"{mean:.3g} ± {sd:.2g}" if sd else f"{mean:.3g}"


def seeds(cell: Cell) -> str:
    return f"{len(cell.runs)}" + (f" of {len(cell.runs) + len(cell.failed)}" if cell.failed else "")


def below(study: Study, metrics: Sequence[str]) -> list[str]:
    """What the values are to be compared with, each failure, and the protocols."""
    return [*references(study, metrics), *failures(study), *(["", protocols(study, metrics)] if metrics else [])]


def references(study: Study, metrics: Sequence[str]) -> list[str]:
    """A paragraph for the teacher's ODE and one for real data."""
    known: dict[str, list[str]] = {}
    for metric in metrics:
        for name, value in study.reference(metric).items():
            known.setdefault(name, []).append(f"{metric} {value:.3g}")
    return [line for name, values in known.items() for line in ("", f"{name}: {', '.join(values)}.")]


def failures(study: Study) -> list[str]:
    told = [f"- {label(cell.swept, row['seed'])}: {row['failed']}" for cell in study.cells for row in cell.failed]
    return ["", "Failed:", "", *told] if told else []


def protocols(study: Study, metrics: Sequence[str]) -> str:
    """Of the one-step generator's values, each once."""
    known: dict[str, dict[str, None]] = {}
    for run in study.runs:
        for r in run["results"]:
            if r["metric"] in metrics and r["weights"] == "ema" and not reference_name(r):
                known.setdefault(f"{r['protocol']}, n = {r['n']}", {})[r["metric"]] = None
    return "; ".join(f"{', '.join(names)}: {protocol}" for protocol, names in known.items()) + "."
