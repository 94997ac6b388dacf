"""Rows of runs.jsonl as Markdown tables, and measurements as a table for a terminal."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fgm.utils.records import Measurement, counted

Row = dict[str, Any]
Key = tuple[str, int, str]  # sampler, nfe, metric


def table_head(columns: Sequence[str]) -> list[str]:
    return [table_row(columns), "|" + " --- |" * len(columns)]


def table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def mean_and_sd(values: Sequence[float]) -> str:
    """Format as 1.5 ± 0.71; empty without values."""
    if not values:
        return ""
    spread = stdev(values) if len(values) > 1 else 0.0
    return f"{fmean(values):.3g}" + (f" ± {spread:.2g}" if spread else "")


def by_protocol(results: Iterable[Row]) -> dict[str, list[str]]:
    """Group the metrics of result rows by "<protocol>, n = <n>"."""
    metrics: dict[str, dict[str, None]] = defaultdict(dict)
    for row in results:
        metrics[f"{row['protocol']}, n = {row['n']}"][row["metric"]] = None
    return {protocol: list(names) for protocol, names in metrics.items()}


def protocol_line(results: Iterable[Row]) -> str:
    """Name each protocol and n once, after its metrics."""
    return "; ".join(f"{', '.join(names)}: {protocol}" for protocol, names in by_protocol(results).items()) + "."


def newest_runs(runs: Sequence[Row]) -> list[Row]:
    """Return the last run of each seed among those whose config is the last run's in everything but the seed.

    Runs with overrides count only if the experiment was never run as it is written.
    """
    runs = [run for run in runs if not run.get("differs")] or list(runs)
    same = [run for run in runs if run["study_digest"] == runs[-1]["study_digest"]]
    return list({run["seed"]: run for run in same}.values())


def run_table(name: str, runs: Sequence[Row]) -> list[str]:
    """Return one experiment's table: samplers down, metrics across, mean and standard deviation over seeds."""
    values = values_by_sampler(runs)
    metrics = list(dict.fromkeys(metric for _, _, metric in values))
    seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    title = (
        f"**{name}**{overrides_of(runs[-1])}, {seeds}, {fmean(run['train_s'] for run in runs) / 60:.1f} min training"
    )
    body = [
        table_row([sampler, str(nfe or ""), *(mean_and_sd(values.get((sampler, nfe, m), [])) for m in metrics)])
        for sampler, nfe in dict.fromkeys((sampler, nfe) for sampler, nfe, _ in values)
    ]
    below = protocol_line(row for row in runs[-1]["results"] if row["weights"] != "real")
    return [f"{title} on {runs[-1]['device']}", "", *table_head(["sampler", "calls", *metrics]), *body, "", below]


def overrides_of(run: Row) -> str:
    return f" with {' '.join(run['differs'])}" if run.get("differs") else ""


def values_by_sampler(runs: Iterable[Row]) -> dict[Key, list[float]]:
    """Collect values over runs; Measurement refuses a value without protocol or n."""
    values: dict[Key, list[float]] = defaultdict(list)
    for m in (Measurement.from_row(row) for run in runs for row in run["results"]):
        values[sampler_name(m), m.nfe, m.metric].append(m.value)
    return values


def sampler_name(m: Measurement) -> str:
    if m.weights == "real":
        return m.protocol.partition(";")[0] if ";" in m.protocol else "floor: fresh against fresh"
    if m.weights == "teacher" and m.nfe > 1:
        return "teacher's ODE"
    if m.weights in ("start", "teacher"):
        return "start: before training" if (m.weights, m.nfe) == ("start", 1) else "start: teacher at t*"
    return f"{counted(m.nfe, 'step')}, {m.weights}"


def benchmark_tables(runs: Sequence[Row]) -> list[str]:
    """Return a table for each subject (cycle, evaluation, memory), with the newest row of each measurement."""
    newest = {}
    for run in runs:
        first = [(row["n"], row["protocol"]) for row in run["results"][:1]]
        newest[run["experiment"], run["device"], run["subject"], *first] = run
    lines = []
    for subject in dict.fromkeys(run["subject"] for run in newest.values()):
        own = [run for run in newest.values() if run["subject"] == subject]
        metrics = list(dict.fromkeys(row["metric"] for run in own for row in run["results"]))
        head = table_head(["experiment", subject, "n", *metrics, "device"])
        lines += [*head, *(benchmark_line(run, metrics) for run in own), ""]
    return lines


def benchmark_line(run: Row, metrics: Sequence[str]) -> str:
    """Show values, with their range over single repetitions in brackets."""
    measured = {row["metric"]: Measurement.from_row(row) for row in run["results"]}
    cells = dict.fromkeys(metrics, "")
    for metric, m in measured.items():
        spread = f" ({m.extra['low']:.3g} to {m.extra['high']:.3g})" if "low" in m.extra else ""
        cells[metric] = f"{m.value:.3g}{spread}"
    first = next(iter(measured.values()))
    return table_row([run["experiment"], first.protocol, str(first.n), *cells.values(), run["device"]])


def summary(results: Sequence[Measurement], title: str) -> Group:
    """Return a terminal's table of 80 columns: metrics down, samplers across, protocols below.

    Ceilings, which are what noise scores, are the same for all runs and are left out.
    """
    shown = [m for m in results if not m.protocol.startswith("ceiling")]
    columns: dict[str, dict[str, str]] = defaultdict(dict)
    for m in shown:
        columns[column_name(m, columns)][m.metric] = f"{m.value:.3g}" if abs(m.value) < 1000 else f"{m.value:.0f}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for name, values in columns.items():
        table.add_column(name, justify="right", min_width=max(map(len, values.values())))
    for metric in dict.fromkeys(m.metric for m in shown):
        table.add_row(metric, *(values.get(metric, "") for values in columns.values()))
    rows = [m.row() | ({"protocol": m.protocol.partition(";")[0]} if m.weights == "real" else {}) for m in shown]
    return Group(table, *(Text(f"{', '.join(names)}: {protocol}") for protocol, names in by_protocol(rows).items()))


def column_name(m: Measurement, columns: dict[str, dict[str, str]]) -> str:
    """Name the sampler, or the protocol's beginning if the sampler already has such a value."""
    name = sampler_name(m) + (f", {counted(m.nfe, 'call')}" if m.weights == "teacher" and m.nfe > 1 else "")
    name = {"folder": "folder", "real": "floor"}.get(m.weights, name)
    return m.protocol.partition(";")[0] if m.metric in columns.get(name, {}) else name
