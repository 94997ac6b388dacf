"""Overviews, as Markdown: of recipes and studies, from what defines them and their rows; of pages in experiments/."""

import re
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

from fgm.analysis.run_table import collect, newest, with_what
from fgm.cli.config import CONFIGS, recipes
from fgm.cli.studies.definition import Sweep, read_sweep, sweeps
from fgm.cli.studies.points import label
from fgm.cli.studies.rows import Cell, Study, studies_of
from fgm.utils.markdown import mean_and_sd, table_head, table_row
from fgm.utils.records import counted, read_rows

UNRUN = re.compile(r"^(not yet run|no finished run has been recorded yet)[;,]?( and)? ?")  # an empty column says it
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
DECIDING = ("shapeeval", "fd", "sliced_w2")  # the first of them that a recipe measures


def recipes_told(experiments: Path) -> list[str]:
    """A line for each recipe, those that have been run first; a page beside the rows has all metrics and protocols."""
    told = [(measured(name, experiments), name) for name in recipes()]
    told.sort(key=lambda pair: not pair[0])
    head = table_head(["recipe", "what it is", "cost", "expected", "measured"])
    return [*head, *(table_row([linked(name, experiments), *header(name), value]) for value, name in told)]


def header(recipe: str) -> list[str]:
    """What a recipe is, its cost and what is expected, from the comment above it; of each the first sentence."""
    lines = (CONFIGS / "experiment" / f"{recipe}.yaml").read_text().splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[2:] if line.startswith("#"))
    return [
        UNRUN.sub("", first_sentence(part)).replace("<", "&lt;") for part in re.split(r"\b(?:Cost|Expect): ", comment)
    ]


def first_sentence(text: str) -> str:
    return text.strip().partition(". ")[0].removesuffix(".")


def linked(recipe: str, experiments: Path) -> str:
    page = f"{experiments.name}/{recipe}/README.md"
    return f"[{recipe}]({page})" if (experiments / recipe / "README.md").exists() else recipe


def measured(recipe: str, experiments: Path) -> str:
    """The deciding metric of the first sampler and of the teacher, with n; nothing of a recipe without rows."""
    runs = newest(read_rows(experiments / recipe / "runs.jsonl"))
    if not runs:
        return ""
    values = collect(runs)
    metric = next(name for name in DECIDING if any(key[2] == name for key in values))
    samplers = {key[1]: key for key in reversed(list(values)) if key[1] and key[2] == metric}
    first = next(key for key in values if key[2] == metric)
    shown = dict.fromkeys([first, samplers[max(samplers)]])
    told = ", ".join(f"{mean_and_sd(values[key])} in {counted(key[1], 'call')}" for key in shown)
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    minutes = mean(run["train_s"] for run in runs) / 60
    cost = f"; {minutes:.1f} min" if minutes > 0.05 else ""  # none where a finished run was measured again
    return f"{metric} {told} (n = {number_of(runs[-1], metric)}{seeds}){with_what(runs[-1])}{cost}"


def number_of(run: dict[str, Any], metric: str) -> int:
    return next(row["n"] for row in run["results"] if row["metric"] == metric)


def studies_told(experiments: Path) -> list[str]:
    """A line for each study: its question, its points, and the best of them, of each recipe that it was asked of."""
    head = table_head(["study", "question", "points", "the best so far"])
    return [*head, *(study_line(read_sweep(name), experiments) for name in sweeps())]


def study_line(sweep: Sweep, experiments: Path) -> str:
    studies = studies_of(read_rows(experiments / sweep.name / "runs.jsonl"))
    points = prod(len(axis.values) for axis in sweep.axes.values())
    told = "; ".join(best_told(study, study.best) for study in studies if study.best)
    return table_row([linked(sweep.name, experiments), sweep.question, str(points), told])


def best_told(study: Study, best: Cell) -> str:
    """With the number of runs, and those of the other points that its seeds do not tell from it."""
    near = len(study.near_best)
    beside = f", {near} near it" if near else ""
    value, n = mean_and_sd(best.values(study.metric)), number_of(study.runs[0], study.metric)
    return f"{study.recipe}: {study.metric} {value} (n = {n}) at {label(best.swept)}{beside}; {len(study.runs)} runs"


def pages_told(experiments: Path) -> list[str]:
    """A line for each page, those with rows first: its question, and the first sentence of its verdict."""
    pages = [(path.parent.name, path.read_text()) for path in sorted(experiments.glob("*/README.md"))]
    counts = {name: len(read_rows(experiments / name / "runs.jsonl")) for name, _ in pages}
    pages.sort(key=lambda page: not counts[page[0]])
    head = table_head(["page", "question", "rows", "verdict"])
    return [*head, *(page_line(name, text, counts[name]) for name, text in pages)]


def page_line(name: str, text: str, rows: int) -> str:
    question, verdict = (paragraph(text, title) for title in ("Questions?", "Verdict"))
    return table_row([f"[{name}]({name}/README.md)", question, str(rows or ""), first_sentence(verdict)])


def paragraph(text: str, title: str) -> str:
    """What follows a title in bold, up to an empty line; nothing where there is none. Links lead from its own page."""
    found = re.search(rf"\*\*{title}\.\*\* (.*?)(?:\n\n|\n<!--|\Z)", text, re.S)
    return LINK.sub(r"\1", " ".join(found[1].split())) if found else ""
