"""Each notebook runs from top to bottom; its pictures and tables are kept in the repository for readers on the web."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
RECORDED = 'Path("../experiments")'
OF_STUDIES = [path for path in NOTEBOOKS if RECORDED in path.read_text().replace('\\"', '"')]


def executed(path: Path, recorded: str = RECORDED) -> NotebookNode:
    """recorded: where it is told that rows are."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(RECORDED, recorded)
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_keeps_its_pictures_and_what_the_rows_say(path: Path) -> None:
    kept, fresh = nbformat.read(path, as_version=4), executed(path)
    assert pictures(kept) == pictures(fresh) > 0
    assert tables(kept) == tables(fresh), "make notebooks"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", OF_STUDIES, ids=lambda path: path.stem)
def test_without_rows_a_notebook_says_how_to_make_them(path: Path, tmp_path: Path) -> None:
    fresh = executed(path, f'Path("{tmp_path}")')
    said = "".join(output.get("text", "") for output in outputs(fresh))
    assert f"No run has finished yet: make sweep SWEEP={path.stem[3:]}" in said and pictures(fresh) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_no_warning_of_the_machine_that_ran_it(path: Path) -> None:
    assert [output for output in outputs(nbformat.read(path, as_version=4)) if output.get("name") == "stderr"] == []


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def tables(notebook: NotebookNode) -> list[str]:
    """Of the studies' rows."""
    return [o.data["text/markdown"] for o in outputs(notebook) if "text/markdown" in o.get("data", {})]
