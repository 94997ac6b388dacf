"""Rows of a study as points with seeds: what tables, plots and pages are made of.

A recipe's newest definition of the study counts, that of its last row; of each point and seed the last row. A run whose
deciding metric is not finite, or was not measured, has failed, whatever else it says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from fgm.utils.errors import UserError

Row = dict[str, Any]


def value_of(row: Row, metric: str) -> float | None:
    """Of the first sampler, which is the averaged generator in a distillation."""
    return next((r["value"] for r in row["results"] if r["metric"] == metric and r["weights"] != "real"), None)


@dataclass(frozen=True)
class Cell:
    """One point of the grid: its finished runs, and those that failed, by seed."""

    swept: dict[str, Any]
    runs: list[Row]
    failed: list[Row]

    def values(self, metric: str) -> list[float]:
        return [value for run in self.runs if (value := value_of(run, metric)) is not None]

    def mean(self, metric: str) -> float:
        """nan of none."""
        return fmean(self.values(metric) or [math.nan])

    def spread(self, metric: str) -> float:
        """Standard deviation over the seeds; 0 of one."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else 0.0

    @property
    def seconds(self) -> float:
        """Mean training time."""
        return fmean(run["train_s"] for run in self.runs) if self.runs else math.nan


@dataclass(frozen=True)
class Study:
    """All points of one study on one recipe, in the order of their values.

    Attributes:
        fixed: axes of the sweep that these points do not differ in, and their values.
    """

    name: str
    recipe: str
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
        """The one that decides."""
        return next(iter(self.metrics))

    @property
    def near_best(self) -> list[Cell]:
        """The others whose mean is no farther from the best one's than the standard deviations of both together."""
        best, metric = self.best, self.metric
        if best is None:
            return []
        known = [cell for cell in self.finished if cell is not best]
        return [c for c in known if abs(c.mean(metric) - best.mean(metric)) <= c.spread(metric) + best.spread(metric)]

    @property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.runs]

    @cached_property
    def best(self) -> Cell | None:
        """Of the finished ones."""
        sign = -1 if self.metrics[self.metric] == "max" else 1
        return min(self.finished, key=lambda cell: sign * cell.mean(self.metric), default=None)

    @property
    def measured(self) -> list[str]:
        """Those of the metrics that have values."""
        return [metric for metric in self.metrics if any(cell.values(metric) for cell in self.cells)]

    def values(self, axis: str) -> list[Any]:
        return list(dict.fromkeys(cell.swept[axis] for cell in self.cells))

    def numeric(self, axis: str) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values(axis))

    def reference(self, metric: str) -> dict[str, float]:
        """What the metric is for the teacher's ODE and for real data, where all runs have the same."""
        found: dict[str, set[float]] = {}
        for result in (r for run in self.runs for r in run["results"] if r["metric"] == metric):
            if name := reference_name(result):
                found.setdefault(name, set()).add(result["value"])
        return {name: values.pop() for name, values in found.items() if len(values) == 1}


def reference_name(result: Row) -> str | None:
    if result["weights"] == "teacher" and result["nfe"] > 1:
        return f"teacher, {result['nfe']} calls"
    real = result["weights"] == "real" and result["protocol"].startswith("floor")
    return result["protocol"].partition(";")[0] if real else None


def studies_of(rows: Sequence[Row]) -> list[Study]:
    """One for each recipe, in the order in which they were first run."""
    recipes = dict.fromkeys(row["recipe"] for row in rows)
    return [study_of([row for row in rows if row["recipe"] == recipe]) for recipe in recipes]


def study_of(rows: Sequence[Row]) -> Study:
    last = rows[-1]
    alike = [row for row in rows if row["sweep_digest"] == last["sweep_digest"]]
    fixed = constants([row["swept"] for row in alike])
    newest = {(tuple((k, v) for k, v in row["swept"].items() if k not in fixed), row["seed"]): row for row in alike}
    by_seed = sorted(newest.items(), key=lambda item: item[1]["seed"])
    metric, swept = next(iter(last["metrics"])), dict.fromkeys(key for key, _ in newest)
    cells = [
        cell_of(dict(key), [row for (k, _), row in by_seed if k == key], metric)
        for key in sorted(swept, key=lambda key: order(key, list(newest)))
    ]
    return Study(last["study"], last["recipe"], last["metrics"], cells, fixed)


def constants(swept: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Axes of which one value alone was run, where another axis was swept."""
    same = {axis: value for axis, value in swept[0].items() if all(point[axis] == value for point in swept)}
    return same if len(same) < len(swept[0]) else {}


def order(key: tuple[tuple[str, Any], ...], keys: list[Any]) -> list[Any]:
    """Numbers by size, words as they first came."""
    words = [[value for k, _ in keys for name, value in k if name == axis] for axis, _ in key]
    return [(0, v) if isinstance(v, int | float) else (1, words[i].index(v)) for i, (_, v) in enumerate(key)]


def cell_of(swept: dict[str, Any], rows: list[Row], metric: str) -> Cell:
    told = [row | ({"failed": why} if (why := trouble(row, metric)) else {}) for row in rows]
    return Cell(swept, [row for row in told if "failed" not in row], [row for row in told if "failed" in row])


def trouble(row: Row, metric: str) -> str | None:
    if "failed" in row:
        return row["failed"]
    value = value_of(row, metric)
    if value is None:
        return f"{metric} was not measured"
    return None if math.isfinite(value) else f"{metric} is {value}"


def require_runs(studies: Sequence[Study], name: str) -> None:
    """
    Raises:
        UserError: no point has finished.
    """
    if not studies:
        raise UserError(f"no point of {name} has been run: make sweep SWEEP={name}")
    for study in studies:
        if not study.runs:
            why = study.failed[0]["failed"]
            raise UserError(f"all {len(study.failed)} points of {name} on {study.recipe} failed, the first one: {why}")
