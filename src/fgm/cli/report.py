"""Make a study's page, plots and table from its rows: python -m fgm.cli.report sweep=t_star

outputs=outputs              where the runs are, whose samples are shown
experiments=experiments      where the rows are, and where the page and the plots go
out=<file>.html              the report; outputs/<study>/report.html unless given

experiments/<study>/README.md keeps the finding and the verdict that were written by hand.
"""

from pathlib import Path

from fgm.cli.arguments import read_settings
from fgm.cli.studies.definition import read_sweep
from fgm.cli.studies.page import by_hand, page_of
from fgm.cli.studies.rows import require_runs, studies_of
from fgm.cli.table import render
from fgm.utils.errors import entry
from fgm.utils.records import read_rows

OWN = {"sweep": "", "outputs": "outputs", "experiments": "experiments", "out": ""}


def main(arguments: list[str]) -> None:
    own = read_settings(arguments, OWN)
    sweep, outputs, experiments = read_sweep(own["sweep"]), Path(own["outputs"]), Path(own["experiments"])
    folder = experiments / sweep.name
    page, html = folder / "README.md", Path(own["out"] or outputs / sweep.name / "report.html")
    studies = studies_of(read_rows(folder / "runs.jsonl"))
    require_runs(studies, sweep.name)
    from fgm.cli.studies.report import run_places, write_plots, write_report  # matplotlib, from here on

    places = run_places(outputs, sweep.name)
    pictures = {study.recipe: write_plots(study, sweep, places, folder) for study in studies}
    found = by_hand(page)
    page.write_text(render(page_of(sweep, pictures, found), experiments))
    write_report(sweep, studies, found, places, html)
    print(f"{html}, {page} and {sum(map(len, pictures.values()))} plots beside it (make table)")


if __name__ == "__main__":
    entry(main, __doc__)
