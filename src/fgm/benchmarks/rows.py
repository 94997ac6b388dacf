"""Rows of experiments/bench/runs.jsonl as a Markdown table: the newest of each subject, recipe, values and device."""

from typing import Any

from fgm.records import Measurement


def table_of(runs: list[dict[str, Any]]) -> list[str]:
    head = ["| recipe | subject | metric | value | from, to | n | device |", "|" + " --- |" * 7]
    newest = {(run["study_digest"], run["device"]): run for run in runs}.values()
    return [*head, *(line for run in newest for line in lines_of(run)), "", *footnotes(list(newest))]


def lines_of(run: dict[str, Any]) -> list[str]:
    measured = [Measurement.from_row(row) for row in run["results"]]
    subject = f"{run['subject']}, {run['extractor']}" if "extractor" in run else run["subject"]
    return [
        f"| {run['recipe']} | {subject} | {m.metric} | {m.value:.3g} | {spread(m)} | {m.n} | {run['device']} |"
        for m in measured
    ]


def spread(m: Measurement) -> str:
    """Of single repetitions, where it was kept."""
    return f"{m.extra['low']:.3g}, {m.extra['high']:.3g}" if "low" in m.extra else ""


def footnotes(runs: list[dict[str, Any]]) -> list[str]:
    """Each protocol once."""
    return ["; ".join(dict.fromkeys(row["protocol"] for run in runs for row in run["results"])) + "."]
