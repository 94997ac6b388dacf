"""python -m fgm.table [check=true]: write the tables of the README files from runs.jsonl.

Between <!-- table: recipe, recipe --> and <!-- end --> stands one table each: a row per sampler, the mean and standard
deviation over the seeds of the newest config. <!-- table: recipe (fd, kid) --> shows these metrics alone. Runs of older
configs stay in runs.jsonl. Rows of fgm.bench, which name a subject, and of studies make tables of their own kinds.
"""

import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from fgm.benchmarks.rows import table_of
from fgm.errors import Refusal, entry
from fgm.markdown import mean_and_sd, protocols, table_head, table_row
from fgm.records import Measurement, read_rows, steps_named
from fgm.studies.identity.table import table_of_identity
from fgm.studies.table import table_of_study

ROOT = Path(__file__).parents[2]
DIARIES = sorted((ROOT / "experiments").glob("*/README.md"))
DOCUMENTS = ("README.md", "experiments/README.md", *(f"experiments/{p.parent.name}/README.md" for p in DIARIES))
BLOCK = re.compile(
    r"(<!-- table: (?P<recipes>[\w, *]+?)(?: \((?P<metrics>[\w, ]+)\))? -->\n).*?(?P<end><!-- end -->)", re.S
)
Key = tuple[str, int, str]


def main(arguments: list[str]) -> None:
    checking = "check=true" in arguments
    unknown = [a for a in arguments if a != "check=true"]
    if unknown:
        raise Refusal(f"{unknown[0]!r}: fgm.table takes check=true or nothing")
    for name in DOCUMENTS:
        path = ROOT / name
        fresh = render(path.read_text(), ROOT / "experiments")
        if checking and fresh != path.read_text():
            raise Refusal(f"the tables in {name} are stale: make table")
        path.write_text(fresh)
        print(f"{name}: tables are up to date")


def render(document: str, experiments: Path) -> str:
    """The document with every table block made anew."""

    def fill(block: re.Match[str]) -> str:
        metrics = named(block["metrics"] or "")
        return block[1] + table(chosen(block["recipes"], experiments), experiments, metrics) + block["end"]

    return BLOCK.sub(fill, document)


def chosen(recipes: str, experiments: Path) -> list[str]:
    """The recipes that a block names, or with * all that have runs."""
    if recipes.strip() == "*":
        return sorted(path.parent.name for path in experiments.glob("*/runs.jsonl"))
    return named(recipes)


def named(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def table(recipes: list[str], experiments: Path, metrics: list[str] | None = None) -> str:
    """The tables of recipes; of all metrics where none are named."""
    lines = []
    for recipe in recipes:
        runs = read_rows(experiments / recipe / "runs.jsonl")
        if runs:
            lines += [*lines_of(recipe, runs, metrics or []), ""]
    return "\n".join(lines) + ("\n" if lines else "")


def lines_of(name: str, runs: list[dict[str, Any]], metrics: list[str]) -> list[str]:
    """By the kind of their rows: of a bench, the identity's study, a sweep's study, or a recipe's own runs."""
    if "subject" in runs[-1]:
        return table_of(runs)
    if "case" in runs[-1]:
        return table_of_identity(runs)
    if "study" in runs[-1]:
        return table_of_study(runs, metrics)
    return rows_of(name, [with_metrics(run, metrics) for run in newest(runs)])


def newest(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run of each seed among those that differ from the last run in nothing but the seed."""
    if not runs:
        return []
    alike = [run for run in runs if run["study_digest"] == runs[-1]["study_digest"]]
    return list({run["seed"]: run for run in alike}.values())


def with_metrics(run: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """The run with these metrics alone, where any are named."""
    return run | {"results": [row for row in run["results"] if not metrics or row["metric"] in metrics]}


def rows_of(recipe: str, runs: list[dict[str, Any]]) -> list[str]:
    """One Markdown table: samplers down, metrics across."""
    values = collect(runs)
    metrics = list(dict.fromkeys(metric for _, _, metric in values))
    seeds, minutes = len(runs), fmean(run["train_s"] for run in runs) / 60
    head = [
        f"**{recipe}**, {seeds} seed{'s' if seeds > 1 else ''}, {minutes:.1f} min training on {runs[-1]['device']}",
        "",
    ]
    body = [
        table_row([name, str(nfe or ""), *(mean_and_sd(values.get((name, nfe, metric), [])) for metric in metrics)])
        for name, nfe in dict.fromkeys((name, nfe) for name, nfe, _ in values)
    ]
    below = protocols(row for row in runs[-1]["results"] if row["weights"] != "real")
    return [*head, *table_head(["sampler", "calls", *metrics]), *body, "", below]


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


if __name__ == "__main__":
    entry(main, __doc__)
