"""A recipe's own runs as a Markdown table: samplers down, metrics across, mean and standard deviation over seeds."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from fgm.records import Measurement, steps_named

Key = tuple[str, int, str]


def newest(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run of each seed among those that differ from the last run in nothing but the seed."""
    if not runs:
        return []
    alike = [run for run in runs if run["study_digest"] == runs[-1]["study_digest"]]
    return list({run["seed"]: run for run in alike}.values())


def rows_of(recipe: str, runs: list[dict[str, Any]]) -> list[str]:
    values, metrics = collect(runs), []
    for _, _, metric in values:
        metrics += [metric] if metric not in metrics else []
    seeds, minutes = len(runs), mean(run["train_s"] for run in runs) / 60
    head = [
        f"**{recipe}**, {seeds} seed{'s' if seeds > 1 else ''}, {minutes:.1f} min training on {runs[-1]['device']}",
        "",
    ]
    head += ["| sampler | calls | " + " | ".join(metrics) + " |", "| --- | --- |" + " --- |" * len(metrics)]
    samplers = list(dict.fromkeys((name, nfe) for name, nfe, _ in values))
    body = [
        f"| {name} | {nfe or ''} | "
        + " | ".join(cell(values.get((name, nfe, metric), [])) for metric in metrics)
        + " |"
        for name, nfe in samplers
    ]
    return [*head, *body, "", *footnotes(runs[-1])]


def collect(runs: list[dict[str, Any]]) -> dict[Key, list[float]]:
    """(sampler, nfe, metric) -> values over runs; a value without protocol or n is refused by Measurement."""
    values: dict[Key, list[float]] = defaultdict(list)
    for run in runs:
        for row in run["results"]:
            m = Measurement.from_row(row)
            values[sampler_name(m), m.nfe, m.metric].append(m.value)
    return values


def sampler_name(m: Measurement) -> str:
    if m.weights == "real":
        return m.protocol.partition(";")[0] if ";" in m.protocol else "floor: fresh against fresh"
    if m.weights == "teacher":
        return "start: teacher at t*" if m.nfe == 1 else "teacher's ODE"
    return "start: teacher at t*" if m.weights == "start" else f"{steps_named(m.nfe)}, {m.weights}"


def cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.2g}" if len(values) > 1 and stdev(values) > 0 else ""
    return f"{mean(values):.3g}{spread}"


def footnotes(run: dict[str, Any]) -> list[str]:
    """Protocol and n of every metric, each pair of them once."""
    metrics: dict[str, dict[str, None]] = defaultdict(dict)
    for row in run["results"]:
        if row["weights"] != "real":
            metrics[f"{row['protocol']}, n = {row['n']}"][row["metric"]] = None
    return ["; ".join(f"{', '.join(names)}: {protocol}" for protocol, names in metrics.items()) + "."]
