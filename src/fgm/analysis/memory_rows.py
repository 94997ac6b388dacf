"""Rows of experiments/bench/runs.jsonl as Markdown tables: one for each subject, the newest row of each measurement."""

from typing import Any

from fgm.utils.markdown import table_head, table_row
from fgm.utils.records import Measurement


def table_of(runs: list[dict[str, Any]]) -> list[str]:
    newest = {identity(run): run for run in runs}.values()
    subjects = dict.fromkeys(run["subject"] for run in newest)
    return [line for subject in subjects for line in subject_table([r for r in newest if r["subject"] == subject])]


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    """What was measured where; a later row of the same stands in its place."""
    asked = [(row["n"], row["protocol"]) for row in run["results"][:1]]
    return run["recipe"], run["device"], run["subject"], *asked


def subject_table(runs: list[dict[str, Any]]) -> list[str]:
    metrics = list(dict.fromkeys(row["metric"] for run in runs for row in run["results"]))
    columns = ["recipe", runs[0]["subject"], "n", *metrics, "device"]
    return [*table_head(columns), *(line_of(run, metrics) for run in runs), ""]


def line_of(run: dict[str, Any], metrics: list[str]) -> str:
    """Values, and in brackets from and to what they went in single repetitions."""
    measured = {row["metric"]: Measurement.from_row(row) for row in run["results"]}
    first = next(iter(measured.values()))
    cells = [shown(measured[metric]) if metric in measured else "" for metric in metrics]
    return table_row([run["recipe"], first.protocol, str(first.n), *cells, run["device"]])


def shown(m: Measurement) -> str:
    spread = f" ({m.extra['low']:.3g} to {m.extra['high']:.3g})" if "low" in m.extra else ""
    return f"{m.value:.3g}{spread}"
