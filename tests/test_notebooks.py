"""Each notebook runs from top to bottom, and its outputs are kept in the repository for readers on the web."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_keeps_its_pictures(path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    fresh = NotebookClient(
        nbformat.read(path, as_version=4), timeout=300, resources={"metadata": {"path": path.parent}}
    )
    executed = fresh.execute()
    assert pictures(kept) == pictures(executed) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_no_warning_of_the_machine_that_ran_it(path: Path) -> None:
    cells = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"] == []


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return sum("image/png" in output.get("data", {}) for output in outputs)
