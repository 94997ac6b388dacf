"""A study: the points of a sweep with their seeds, from rows of runs.jsonl, and its Markdown table.

Only the newest definition of a study counts, that of the experiment's last row, and the last row of each point and seed.
A run has failed if its deciding metric is not finite or was not measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from fgm.analysis.tables import mean_and_sd, protocol_line, table_head, table_row

Row = dict[str, Any]


def label(swept: dict[str, Any], seed: int | None = None) -> str:
    """Format as t_star 0.9, c_in one, seed 0."""
    words = [f"{short_name(axis, swept)} {value}" for axis, value in swept.items()]
    return ", ".join(words if seed is None else [*words, f"seed {seed}"])


def short_name(axis: str, axes: Any) -> str:
    """Return the last word of a dotted axis, unless another one ends alike."""
    last = axis.rpartition(".")[2]
    return axis if sum(other.rpartition(".")[2] == last for other in axes) > 1 else last


def value_of(row: Row, metric: str, weights: str | None = None) -> float | None:
    """Return the value of these weights, or else of the first sampler, the averaged generator in a distillation."""
    own = (r for r in row["results"] if r["metric"] == metric and r["weights"] != "real")
    return next((r["value"] for r in own if weights in (None, r["weights"])), None)


def failure_of(row: Row, metric: str) -> str | None:
    if "failed" in row:
        return row["failed"]
    value = value_of(row, metric)
    if value is None:
        return f"{metric} was not measured"
    return None if math.isfinite(value) else f"{metric} is {value}"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its finished and its failed runs, by seed."""

    swept: dict[str, Any]
    runs: list[Row]
    failed: list[Row]

    def values(self, metric: str, weights: str | None = None) -> list[float]:
        return [value for run in self.runs if (value := value_of(run, metric, weights)) is not None]

    def mean(self, metric: str, weights: str | None = None) -> float:
        return fmean(self.values(metric, weights) or [math.nan])

    def spread(self, metric: str) -> float:
        """Return the standard deviation over the seeds; 0 of one."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else 0.0

    @property
    def seconds(self) -> float:
        """Return the mean training time."""
        return fmean(run["train_s"] for run in self.runs) if self.runs else math.nan


@dataclass(frozen=True)
class Study:
    """All points of one study on one experiment, in the order of their values.

    Attributes:
        metrics: metric -> min or max; the first one decides.
        fixed: axes of the sweep in which these points do not differ, with their values.
    """

    name: str
    experiment: str
    metrics: dict[str, str]
    cells: list[Cell]
    fixed: dict[str, Any]

    @property
    def axes(self) -> list[str]:
        return list(self.cells[0].swept)

    @cached_property
    def runs(self) -> list[Row]:
        return [run for cell in self.cells for run in cell.runs]

    @cached_property
    def failed(self) -> list[Row]:
        return [run for cell in self.cells for run in cell.failed]

    @property
    def metric(self) -> str:
        return next(iter(self.metrics))

    @property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.runs]

    @cached_property
    def best(self) -> Cell | None:
        return self.best_of(None)

    def best_of(self, weights: str | None) -> Cell | None:
        """Return the point with the best mean of the deciding metric for these weights, as in value_of."""
        sign = -1 if self.metrics[self.metric] == "max" else 1
        having = [cell for cell in self.cells if cell.values(self.metric, weights)]
        return min(having, key=lambda cell: sign * cell.mean(self.metric, weights), default=None)

    @cached_property
    def weights(self) -> list[str]:
        """Return the other weights of the generator that were measured: raw, and further averages."""
        found = dict.fromkeys(r["weights"] for run in self.runs for r in run["results"])
        return [weights for weights in found if weights == "raw" or weights.startswith("ema_")]

    @property
    def tied(self) -> list[Cell]:
        """Return the other points whose mean differs from the best by at most the sum of their standard deviations."""
        best, metric = self.best, self.metric
        if best is None:
            return []
        others = [cell for cell in self.finished if cell is not best]
        return [c for c in others if abs(c.mean(metric) - best.mean(metric)) <= c.spread(metric) + best.spread(metric)]

    @property
    def measured(self) -> list[str]:
        """Return the metrics that have values."""
        return [metric for metric in self.metrics if any(cell.values(metric) for cell in self.cells)]

    def values(self, axis: str) -> list[Any]:
        return list(dict.fromkeys(cell.swept[axis] for cell in self.cells))

    def is_numeric(self, axis: str) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values(axis))

    def references(self, metric: str) -> dict[str, float]:
        """Return the metric of the teacher's ODE and of real data, if it is the same in all runs."""
        values: dict[str, set[float]] = {}
        for r in (r for run in self.runs for r in run["results"] if r["metric"] == metric):
            if r["weights"] == "teacher" and r["nfe"] > 1:
                values.setdefault(f"teacher, {r['nfe']} calls", set()).add(r["value"])
            elif r["weights"] == "real" and r["protocol"].startswith("floor"):
                values.setdefault(r["protocol"].partition(";")[0], set()).add(r["value"])
        return {name: same.pop() for name, same in values.items() if len(same) == 1}


def studies_of(rows: Sequence[Row]) -> list[Study]:
    """Return one study for each experiment, in the order in which they were first run."""
    experiments = dict.fromkeys(row["experiment"] for row in rows)
    return [study_of([row for row in rows if row["experiment"] == experiment]) for experiment in experiments]


def study_of(rows: Sequence[Row]) -> Study:
    last = rows[-1]
    current = [row for row in rows if row["sweep_digest"] == last["sweep_digest"]]
    fixed = constant_axes([row["swept"] for row in current])
    newest = {(tuple((k, v) for k, v in row["swept"].items() if k not in fixed), row["seed"]): row for row in current}
    by_seed = sorted(newest.items(), key=lambda item: item[1]["seed"])
    keys = list(dict.fromkeys(key for key, _ in newest))

    def order(key: tuple[tuple[str, Any], ...]) -> list[Any]:
        """Sort numbers by size, words as they first came."""
        words = {axis: [dict(other)[axis] for other in keys] for axis, _ in key}
        return [(0, v) if isinstance(v, int | float) else (1, words[axis].index(v)) for axis, v in key]

    metric = next(iter(last["metrics"]))
    cells = [
        cell_of(dict(key), [row for (k, _), row in by_seed if k == key], metric) for key in sorted(keys, key=order)
    ]
    return Study(last["study"], last["experiment"], last["metrics"], cells, fixed)


def constant_axes(swept: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the axes that have one value, unless all do."""
    same = {axis: value for axis, value in swept[0].items() if all(point[axis] == value for point in swept)}
    return same if len(same) < len(swept[0]) else {}


def cell_of(swept: dict[str, Any], rows: Sequence[Row], metric: str) -> Cell:
    failures = [(row, failure_of(row, metric)) for row in rows]
    failed = [row | {"failed": failure} for row, failure in failures if failure]
    return Cell(swept, [row for row, failure in failures if not failure], failed)


def study_tables(rows: Sequence[Row], only: Sequence[str] = ()) -> list[str]:
    """Return a table for each experiment, of these metrics if any are named."""
    return [line for study in studies_of(rows) for line in [*study_table(study, only), ""]]


def study_table(study: Study, only: Sequence[str] = ()) -> list[str]:
    """Return a line for each point, mean and standard deviation over the seeds.

    The deciding metric has a column for each of the generator's weights, with its best mean in bold.
    """
    metrics = [metric for metric in study.measured if not only or metric in only]
    columns: list[tuple[str, str | None]] = []
    for metric in metrics:
        columns += [(metric, None), *((metric, w) for w in study.weights if metric == study.metric)]
    names = [metric if weights is None else f"{metric}, {weights}" for metric, weights in columns]
    head = table_head([*(short_name(axis, study.axes) for axis in study.axes), *names, "seeds", "training"])
    body = [point_line(cell, study, columns) for cell in study.cells]
    return [title(study), "", *head, *body, *remarks(study, metrics)]


def title(study: Study) -> str:
    counts = f"{len(study.runs)} runs of {len(study.cells)} points"
    failed = f", {len(study.failed)} failed" if study.failed else ""
    device = f" on {study.runs[-1]['device']}" if study.runs else ""
    fixed = f", {label(study.fixed)}" if study.fixed else ""
    return f"**{study.name}** of {study.experiment}{fixed}, {counts}{failed}{device}"


def point_line(cell: Cell, study: Study, columns: Sequence[tuple[str, str | None]]) -> str:
    values = []
    for metric, weights in columns:
        value = mean_and_sd(cell.values(metric, weights)) or ("failed" if cell.failed else "")
        values.append(f"**{value}**" if metric == study.metric and cell is study.best_of(weights) else value)
    seeds = f"{len(cell.runs)}" + (f" of {len(cell.runs) + len(cell.failed)}" if cell.failed else "")
    cost = f"{cell.seconds:.0f} s" if cell.runs else ""
    return table_row([*map(str, cell.swept.values()), *values, seeds, cost])


def remarks(study: Study, metrics: Sequence[str]) -> list[str]:
    """Return what stands below the table: reference values, each failure, the protocols."""
    references: dict[str, list[str]] = {}
    for metric in metrics:
        for name, value in study.references(metric).items():
            references.setdefault(name, []).append(f"{metric} {value:.3g}")
    parts = [[f"{name}: {', '.join(values)}."] for name, values in references.items()]
    failures = [f"- {label(c.swept, row['seed'])}: {row['failed']}" for c in study.cells for row in c.failed]
    parts += [["Failed:", "", *failures]] if failures else []
    results = (r for run in study.runs for r in run["results"])
    parts += (
        [[protocol_line(r for r in results if r["metric"] in metrics and r["weights"] == "ema")]] if metrics else []
    )
    return [line for part in parts for line in ("", *part)]
