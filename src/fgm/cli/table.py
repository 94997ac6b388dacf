"""Write the tables of the documents and the plots of the studies from runs.jsonl: python -m fgm.cli.table [--check]

Between a mark and <!-- end -->:

    <!-- table: name, name -->         a table for each folder of experiments/: a row per sampler, of the newest config
    <!-- table: name (fd, kid) -->     only these metrics
    <!-- experiments -->               what each experiment is, costs, is expected to give and has given
    <!-- studies -->                   what each study asks, and its best point
    <!-- pages -->                     the question and the verdict of each page of experiments/

Rows with a subject (benchmarks, memory) and rows of studies make tables of their own kinds. A study without a page gets
one. --check changes nothing, and fails if a table is stale.
"""

import argparse
import json
import re
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from fgm.analysis.plots import write_plots
from fgm.analysis.sweeps import Cell, Study, label, studies_of, study_tables
from fgm.analysis.tables import (
    benchmark_tables,
    mean_and_sd,
    newest_runs,
    overrides_of,
    run_table,
    table_head,
    table_row,
    values_by_sampler,
)
from fgm.cli.config import CONFIGS, experiment_names
from fgm.cli.sweep import SweepConfig, read_sweep, sweeps
from fgm.utils.errors import UserError, entry
from fgm.utils.records import counted, read_rows

ROOT = Path(__file__).parents[3]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "src").rglob("README.md")),
    *sorted((ROOT / "experiments").glob("*/README.md")),
]  # fmt: skip
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "experiments/README.md",
    *(path.relative_to(ROOT).as_posix() for path in PAGES),
)
BLOCK = re.compile(
    r"(<!-- table: (?P<names>[\w, ]+?)(?: \((?P<metrics>[\w, ]+)\))? -->\n).*?(?P<end><!-- end -->)", re.S
)
OVERVIEW = re.compile(r"(<!-- (?P<kind>experiments|studies|pages) -->\n).*?(?P<end><!-- end -->)", re.S)
NOT_RUN = re.compile(r"^(not yet run|no finished run has been recorded yet)[;,]?( and)? ?")  # an empty column says it
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
DECIDING = ("shapeeval", "fd", "sliced_w2")  # the first of them that an experiment measures is shown
PAGE = """# {name}

**Question.** {question}

**Command.** `make sweep SWEEP={name}`; `make table` draws its plots and writes its table

**Finding.** Not written yet.

**Verdict.** Not written yet.

{pictures}
<!-- table: {name} -->
<!-- end -->
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m fgm.cli.table", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only fail if a table is stale")
    checking = parser.parse_args(arguments).check
    if not checking:
        for name in sweeps():
            draw_study(read_sweep(name), ROOT / "experiments", ROOT / "outputs")
    for name in DOCUMENTS:
        path = ROOT / name
        fresh = render(path.read_text(), ROOT / "experiments")
        if checking and fresh != path.read_text():
            raise UserError(f"the tables in {name} are stale: make table")
        path.write_text(fresh)
    print(f"the tables of {len(DOCUMENTS)} documents are up to date")


def render(document: str, experiments: Path) -> str:
    """Return the document with every table block made anew."""

    def fill(block: re.Match[str]) -> str:
        return block[1] + tables(listed(block["names"]), experiments, listed(block["metrics"] or "")) + block["end"]

    def overview(block: re.Match[str]) -> str:
        return block[1] + "\n".join(OVERVIEWS[block["kind"]](experiments)) + "\n" + block["end"]

    return OVERVIEW.sub(overview, BLOCK.sub(fill, document))


def listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def tables(names: list[str], experiments: Path, metrics: list[str]) -> str:
    """Return the tables of folders that have rows, of these metrics if any are named."""
    lines = []
    for name in names:
        rows = read_rows(experiments / name / "runs.jsonl")
        if rows and "subject" in rows[-1]:
            lines += [*benchmark_tables(rows), ""]
        elif rows and "study" in rows[-1]:
            lines += [*study_tables(rows, metrics), ""]
        elif rows:
            runs = newest_runs(rows)
            shown = [[r for r in run["results"] if not metrics or r["metric"] in metrics] for run in runs]
            runs = [run | {"results": results} for run, results in zip(runs, shown, strict=True)]
            lines += [*run_table(name, runs), ""]
    return "\n".join(lines) + ("\n" if lines else "")


def draw_study(sweep: SweepConfig, experiments: Path, outputs: Path) -> None:
    """Draw a study's plots beside its rows, with samples of the runs that are still in outputs, and begin its page."""
    folder = experiments / sweep.name
    studies = [study for study in studies_of(read_rows(folder / "runs.jsonl")) if study.runs]
    done = {json.loads(f.read_text())["config_digest"]: f.parent for f in (outputs / sweep.name).glob("*/results.json")}
    files: dict[str, Path] = {}
    for study in studies:
        drawn = {
            label(cell.swept): done[cell.runs[0]["config_digest"]] / "samples" / "drawn.png"
            for cell in study.finished
            if cell.runs[0]["config_digest"] in done
        }
        pictures = {name: file for name, file in drawn.items() if file.exists()}
        plots = write_plots(study, sweep.units, pictures, folder)
        files |= {f"{plot} of {study.experiment}": file for plot, file in plots.items()}
    page = folder / "README.md"
    if studies and not page.exists():
        shown = "".join(f"![{title}]({file.name})\n\n" for title, file in files.items())
        page.write_text(PAGE.format(name=sweep.name, question=sweep.question, pictures=shown))


def experiment_lines(experiments: Path) -> list[str]:
    """Return a line for each experiment, those that have been run first."""
    lines = [(measured(name, experiments), name) for name in experiment_names()]
    lines.sort(key=lambda pair: not pair[0])
    head = table_head(["experiment", "what it is", "cost", "expected", "measured"])
    return [*head, *(table_row([linked(name, experiments), *header(name), value]) for value, name in lines)]


def header(name: str) -> list[str]:
    """Return what an experiment is, its cost and what is expected: first sentences of the comment above it."""
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[2:] if line.startswith("#"))
    parts = re.split(r"\b(?:Cost|Expect): ", comment)
    return [NOT_RUN.sub("", first_sentence(part)).replace("<", "&lt;") for part in parts]


def first_sentence(text: str) -> str:
    return text.strip().partition(". ")[0].removesuffix(".")


def linked(name: str, experiments: Path) -> str:
    page = f"../{experiments.name}/{name}/README.md"  # from a document in docs/
    return f"[{name}]({page})" if (experiments / name / "README.md").exists() else name


def measured(name: str, experiments: Path) -> str:
    """Return the deciding metric of the first sampler and of the teacher, with n; empty without rows."""
    runs = newest_runs(read_rows(experiments / name / "runs.jsonl"))
    if not runs:
        return ""
    values = values_by_sampler(runs)
    metric = next(name for name in DECIDING if any(key[2] == name for key in values))
    keys = [key for key in values if key[2] == metric]
    teacher = max((key for key in reversed(keys) if key[1]), key=lambda key: key[1])
    shown = [f"{mean_and_sd(values[key])} in {counted(key[1], 'call')}" for key in dict.fromkeys([keys[0], teacher])]
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    minutes = fmean(run["train_s"] for run in runs) / 60
    cost = f"; {minutes:.1f} min" if minutes > 0.05 else ""  # none if a finished run was measured again
    return f"{metric} {', '.join(shown)} (n = {samples(runs[-1], metric)}{seeds}){overrides_of(runs[-1])}{cost}"


def samples(run: dict[str, Any], metric: str) -> int:
    return next(row["n"] for row in run["results"] if row["metric"] == metric)


def study_lines(experiments: Path) -> list[str]:
    """Return a line for each study: its question, its points, and the best of them on each experiment."""
    head = table_head(["study", "question", "points", "the best so far"])
    return [*head, *(study_line(read_sweep(name), experiments) for name in sweeps())]


def study_line(sweep: SweepConfig, experiments: Path) -> str:
    studies = studies_of(read_rows(experiments / sweep.name / "runs.jsonl"))
    points = prod(len(values) for values in sweep.axes.values())
    best = "; ".join(best_point(study, study.best) for study in studies if study.best)
    return table_row([linked(sweep.name, experiments), sweep.question, str(points), best])


def best_point(study: Study, best: Cell) -> str:
    """Describe the best point, with the number of runs and of the points that are tied with it."""
    tied = f", {len(study.tied)} near it" if study.tied else ""
    value, n = mean_and_sd(best.values(study.metric)), samples(study.runs[0], study.metric)
    return f"{study.experiment}: {study.metric} {value} (n = {n}) at {label(best.swept)}{tied}; {len(study.runs)} runs"


def page_lines(experiments: Path) -> list[str]:
    """Return a line for each page, those with rows first."""
    pages = [(path.parent.name, path.read_text()) for path in sorted(experiments.glob("*/README.md"))]
    counts = {name: len(read_rows(experiments / name / "runs.jsonl")) for name, _ in pages}
    pages.sort(key=lambda page: not counts[page[0]])
    head = table_head(["page", "question", "rows", "verdict"])
    return [*head, *(page_line(name, text, counts[name]) for name, text in pages)]


def page_line(name: str, text: str, rows: int) -> str:
    question, verdict = (paragraph(text, title) for title in ("Questions?", "Verdict"))
    return table_row([f"[{name}]({name}/README.md)", question, str(rows or ""), first_sentence(verdict)])


def paragraph(text: str, title: str) -> str:
    """Return the paragraph after a bold title, without links, which lead from its own page."""
    match = re.search(rf"\*\*{title}\.\*\* (.*?)(?:\n\n|\n<!--|\Z)", text, re.S)
    return LINK.sub(r"\1", " ".join(match[1].split())) if match else ""


OVERVIEWS = {"experiments": experiment_lines, "studies": study_lines, "pages": page_lines}


if __name__ == "__main__":
    entry(main, __doc__)
