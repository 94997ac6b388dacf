"""Each notebook runs from top to bottom; its pictures and tables are kept in the repository for readers on the web."""

from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
RECORDED, LONG = 'Path("../experiments")', '"training.max_steps=400"'
SHORT = '"training.max_steps=5", "method.generator_init=random", "method.online_init=random", "method.ode_pairs=0"'


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_keeps_its_pictures_tables_and_no_warning(path: Path, tmp_path: Path) -> None:
    """A notebook of a study runs twice in one kernel: without rows it says how to make them, and still has a picture."""
    kept, notebook = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    source = "".join(cell.source for cell in notebook.cells)
    again = [deepcopy(cell) for cell in notebook.cells if RECORDED in source]
    assert (LONG in source) == (path.stem == "02_one_step_samples")
    for cell in notebook.cells:
        cell.source = cell.source.replace(LONG, SHORT)
    for cell in again:
        cell.source = cell.source.replace(RECORDED, f'Path("{tmp_path}")')
    notebook.cells += again
    cells = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute().cells
    fresh, without_rows = cells[: len(kept.cells)], cells[len(kept.cells) :]
    assert pictures(kept.cells) == pictures(fresh) > 0
    assert tables(kept.cells) == tables(fresh), "make notebooks"
    assert not [output for output in outputs(kept.cells) if output.get("name") == "stderr"]
    if again:
        said = "".join(output.get("text", "") for output in outputs(without_rows))
        assert f"No run has finished yet: make sweep SWEEP={path.stem[3:]}" in said and pictures(without_rows) > 0


def outputs(cells: list[NotebookNode]) -> list[NotebookNode]:
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(cells: list[NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(cells))


def tables(cells: list[NotebookNode]) -> list[str]:
    """Return the tables of the studies' rows."""
    return [o.data["text/markdown"] for o in outputs(cells) if "text/markdown" in o.get("data", {})]
