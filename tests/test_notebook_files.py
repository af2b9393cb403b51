"""The notebooks: paired with their sources, stored without outputs, and each runs top to bottom."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each
def test_it_is_in_step_with_its_source(path):
    source, notebook = jupytext.read(path.with_suffix(".py")), nbformat.read(path, 4)
    assert [(c.cell_type, c.source) for c in source.cells] == [(c.cell_type, c.source) for c in notebook.cells]


@each
def test_it_is_stored_without_outputs(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "widgets" not in notebook.metadata


@each
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_runs_and_every_view_is_shown(path):
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and "wb.show(" in cell.source]
    drawn = {"application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"}
    kinds = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in shown]
    assert shown and all(kind & drawn for kind in kinds)
