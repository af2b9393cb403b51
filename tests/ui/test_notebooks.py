"""The tour in a real JupyterLab: every cell runs, what it shows is drawn, and what is picked is picked everywhere.

All notebooks run in kernels of their own in `test_notebook_files`; each widget is drawn in JupyterLab by its own tests.
"""

from pathlib import Path

from playwright.sync_api import Page, expect

TOUR = Path(__file__).parents[2] / "notebooks" / "00_tour.ipynb"
WIDGETS = ".rw-head-grid, .rw-attention, .rw-attention-row, .rw-circuit, .rw-task-matrix, .rw-token-map"
WIDGET, FIGURE = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"
# Kinds of output of each code cell's last line; a progress bar is a display, not a result.
SHOWN = """() => jupyterapp.shell.currentWidget.content.widgets.filter(cell => cell.model.type === 'code')
  .flatMap(cell => cell.model.outputs.toJSON())
  .filter(output => output.output_type === 'execute_result' || output.data?.['application/vnd.plotly.v1+json'])
  .flatMap(output => Object.keys(output.data))"""


def test_the_tour_draws_and_links_what_it_shows(page: Page, run_notebook) -> None:
    opened = run_notebook(TOUR)
    assert opened.errors() == []
    shown = page.evaluate(SHOWN)
    # As many drawn as the kernel sent, each with something in it.
    widgets, figures = page.locator(WIDGETS), page.locator(".js-plotly-plot")
    expect(widgets).to_have_count(shown.count(WIDGET))
    expect(figures).to_have_count(shown.count(FIGURE))
    for widget in widgets.all():
        widget.scroll_into_view_if_needed()
        expect(widget.locator(".rw-cell, .rw-chip, canvas, .rw-svg").first).to_be_visible()
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator(".main-svg").first).to_be_visible()
        expect(figure.locator(".gtitle")).not_to_be_empty()
    expect(page.get_by_text("Error displaying widget")).to_have_count(0)
    expect(page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']")).to_have_count(0)

    first = page.locator(".rw-head-grid").first
    cell = first.get_by_role("gridcell").nth(1)
    cell.scroll_into_view_if_needed()
    cell.click()
    name = cell.get_attribute("aria-label").partition(",")[0]
    expect(first.locator(".rw-cell[aria-selected=true]")).to_have_count(2)
    said = f"from workbench.models.heads import head_name\nassert head_name(*grid.selected) == {name!r}, grid.selected"
    assert opened.run(said) == []
    # The grid's shared heads are the dataset's.
    marked = first.get_by_role("grid").first.locator(".rw-cell[data-mark=shared]").count()
    assert opened.run(f"assert int(shared.shared.sum()) == {marked}, int(shared.shared.sum())") == []
    expect(page.locator(".rw-attention .rw-title")).to_contain_text("on prompt 0 of ioi")
