"""The notebooks in a real JupyterLab: the widgets are drawn and answer."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_jupyterlab_without_an_error(path: Path, page: Page, run_notebook) -> None:
    opened = run_notebook(path)
    assert opened.errors() == []


def test_a_head_picked_in_the_tour_is_known_in_the_next_cell(page: Page, run_notebook) -> None:
    opened = run_notebook(
        "import workbench as wb",
        "import os, tempfile; os.environ['WORKBENCH_HOME'] = tempfile.mkdtemp()",
        "model = wb.load('zoo/tasks', device='cpu')\n"
        "names = ('subject_verb', 'induction')\n"
        "traced = [wb.run('head_patching', model, wb.task(name, n=8), draws=10) for name in names]\n"
        "grid = wb.show(wb.overlap(*traced, draws=50))\ngrid",
    )
    assert opened.errors() == []
    expect(page.locator(".rw-cell")).to_have_count(2 * 3 * 8)
    page.get_by_label("L2H3").first.click()
    assert opened.run("assert grid.selected == [2, 3], grid.selected") == []
