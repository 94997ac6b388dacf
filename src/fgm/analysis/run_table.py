"""A recipe's own runs as a Markdown table: samplers down, metrics across, mean and standard deviation over seeds."""

from collections import defaultdict
from statistics import fmean
from typing import Any

from fgm.utils.markdown import mean_and_sd, protocols, table_head, table_row
from fgm.utils.records import Measurement, counted

Key = tuple[str, int, str]


def newest(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run of each seed among those that differ from the last run in nothing but the seed.

    A run with overrides of its own counts where the recipe was never run as it is written.
    """
    runs = [run for run in runs if not run.get("differs")] or runs
    if not runs:
        return []
    alike = [run for run in runs if run["study_digest"] == runs[-1]["study_digest"]]
    return list({run["seed"]: run for run in alike}.values())


def rows_of(recipe: str, runs: list[dict[str, Any]]) -> list[str]:
    values = collect(runs)
    metrics = list(dict.fromkeys(metric for _, _, metric in values))
    seeds, minutes = len(runs), fmean(run["train_s"] for run in runs) / 60
    told = f"{seeds} seed{'s' if seeds > 1 else ''}, {minutes:.1f} min training on {runs[-1]['device']}"
    head = [f"**{recipe}**{with_what(runs[-1])}, {told}", ""]
    body = [
        table_row([name, str(nfe or ""), *(mean_and_sd(values.get((name, nfe, metric), [])) for metric in metrics)])
        for name, nfe in dict.fromkeys((name, nfe) for name, nfe, _ in values)
    ]
    below = protocols(row for row in runs[-1]["results"] if row["weights"] != "real")
    return [*head, *table_head(["sampler", "calls", *metrics]), *body, "", below]


def with_what(run: dict[str, Any]) -> str:
    """The overrides of a run that is not as its recipe is written."""
    return f" with {' '.join(run['differs'])}" if run.get("differs") else ""


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
    return "start: teacher at t*" if m.weights == "start" else f"{counted(m.nfe, 'step')}, {m.weights}"
