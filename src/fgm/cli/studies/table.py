"""A study as Markdown: a line for each point, mean and standard deviation over the seeds, the best mean in bold.

The tables are made of the rows alone, whatever has become of the sweep's own file.
"""

from collections.abc import Sequence
from typing import Any

from fgm.cli.studies.points import label, short
from fgm.cli.studies.rows import Cell, Study, studies_of
from fgm.utils.markdown import mean_and_sd, table_head, table_row
from fgm.utils.markdown import protocols as protocols_of


def table_of_study(rows: Sequence[dict[str, Any]], only: Sequence[str] = ()) -> list[str]:
    """Of these metrics alone, where any are named."""
    return [line for study in studies_of(rows) for line in [*lines_of(study, only), ""]]


def lines_of(study: Study, only: Sequence[str] = ()) -> list[str]:
    metrics = [metric for metric in study.measured if not only or metric in only]
    head = table_head([*(short(axis, study.axes) for axis in study.axes), *metrics, "seeds", "training"])
    body = [table_row(cells_of(cell, study, metrics)) for cell in study.cells]
    return [title(study), "", *head, *body, *below(study, metrics)]


def title(study: Study) -> str:
    counts = f"{len(study.runs)} runs of {len(study.cells)} points"
    failed = f", {len(study.failed)} failed" if study.failed else ""
    device = f" on {study.runs[-1]['device']}" if study.runs else ""
    fixed = f", {label(study.fixed)}" if study.fixed else ""
    return f"**{study.name}** of {study.recipe}{fixed}, {counts}{failed}{device}"


def cells_of(cell: Cell, study: Study, metrics: Sequence[str]) -> list[str]:
    values = {metric: told(cell, metric) for metric in metrics}
    if cell is study.best and study.metric in values:
        values[study.metric] = f"**{values[study.metric]}**"
    return [*map(str, cell.swept.values()), *values.values(), seeds(cell), cost(cell)]


def told(cell: Cell, metric: str) -> str:
    return mean_and_sd(cell.values(metric)) or ("failed" if cell.failed else "")


def seeds(cell: Cell) -> str:
    return f"{len(cell.runs)}" + (f" of {len(cell.runs) + len(cell.failed)}" if cell.failed else "")


def cost(cell: Cell) -> str:
    return f"{cell.seconds:.0f} s" if cell.runs else ""


def below(study: Study, metrics: Sequence[str]) -> list[str]:
    """What the values are to be compared with, each failure, and the protocols."""
    parts = [[line] for line in references(study, metrics)]
    if failed := failures(study):
        parts.append(["Failed:", "", *(f"- {line}" for line in failed)])
    parts += [[protocols(study, metrics)]] if metrics else []
    return [line for part in parts for line in ("", *part)]


def references(study: Study, metrics: Sequence[str]) -> list[str]:
    """One for the teacher's ODE and one for real data."""
    known: dict[str, list[str]] = {}
    for metric in metrics:
        for name, value in study.reference(metric).items():
            known.setdefault(name, []).append(f"{metric} {value:.3g}")
    return [f"{name}: {', '.join(values)}." for name, values in known.items()]


def failures(study: Study) -> list[str]:
    return [f"{label(cell.swept, row['seed'])}: {row['failed']}" for cell in study.cells for row in cell.failed]


def protocols(study: Study, metrics: Sequence[str]) -> str:
    """Of the one-step generator's values."""
    results = (r for run in study.runs for r in run["results"])
    return protocols_of(r for r in results if r["metric"] in metrics and r["weights"] == "ema")
