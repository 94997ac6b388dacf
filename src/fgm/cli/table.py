"""python -m fgm.cli.table [check=true]: write the tables of the documents from runs.jsonl and the recipes' headers.

Between a mark and <!-- end -->:

    <!-- table: recipe, recipe -->     one table each: a row per sampler, of the newest config
    <!-- table: recipe (fd, kid) -->   these metrics alone
    <!-- recipes -->                   what each recipe is, costs, is expected to give and has given
    <!-- studies -->                   what each study asks, and its best point
    <!-- pages -->                     what was asked in experiments/, and the verdict

Rows of fgm.cli.bench and fgm.cli.memory, which name a subject, and of studies make tables of their own kinds.
"""

import re
from pathlib import Path
from typing import Any

from fgm.analysis.memory_rows import table_of
from fgm.analysis.run_table import newest, rows_of
from fgm.cli.arguments import read_settings, yes
from fgm.cli.overview import pages_told, recipes_told, studies_told
from fgm.cli.studies.table import table_of_study
from fgm.utils.errors import UserError, entry
from fgm.utils.records import read_rows

ROOT = Path(__file__).parents[3]
DIARIES = sorted((ROOT / "experiments").glob("*/README.md"))
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "src").rglob("README.md")), *DIARIES]
DOCUMENTS = ("README.md", "experiments/README.md", *(path.relative_to(ROOT).as_posix() for path in PAGES))
BLOCK = re.compile(
    r"(<!-- table: (?P<recipes>[\w, ]+?)(?: \((?P<metrics>[\w, ]+)\))? -->\n).*?(?P<end><!-- end -->)", re.S
)
OVERVIEW = re.compile(r"(<!-- (?P<kind>recipes|studies|pages) -->\n).*?(?P<end><!-- end -->)", re.S)
OVERVIEWS = {"recipes": recipes_told, "studies": studies_told, "pages": pages_told}


def main(arguments: list[str]) -> None:
    checking = yes(read_settings(arguments, {"check": "false"}), "check")
    for name in DOCUMENTS:
        path = ROOT / name
        fresh = render(path.read_text(), ROOT / "experiments")
        if checking and fresh != path.read_text():
            raise UserError(f"the tables in {name} are stale: make table")
        path.write_text(fresh)
        print(f"{name}: tables are up to date")


def render(document: str, experiments: Path) -> str:
    """The document with every table block made anew."""

    def fill(block: re.Match[str]) -> str:
        metrics = named(block["metrics"] or "")
        return block[1] + table(named(block["recipes"]), experiments, metrics) + block["end"]

    def overview(block: re.Match[str]) -> str:
        return block[1] + "\n".join(OVERVIEWS[block["kind"]](experiments)) + "\n" + block["end"]

    return OVERVIEW.sub(overview, BLOCK.sub(fill, document))


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
    """By the kind of their rows: of a bench, a sweep's study, or a recipe's own runs."""
    if "subject" in runs[-1]:
        return table_of(runs)
    if "study" in runs[-1]:
        return table_of_study(runs, metrics)
    return rows_of(name, [with_metrics(run, metrics) for run in newest(runs)])


def with_metrics(run: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    """The run with these metrics alone, where any are named."""
    return run | {"results": [row for row in run["results"] if not metrics or row["metric"] in metrics]}


if __name__ == "__main__":
    entry(main, __doc__)
