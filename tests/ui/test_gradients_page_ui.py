"""The parts of the Gradients page and the map of tokens, as a person opens them one after the other."""

import xarray as xr
from dashboards import SLOW, App, expect_to_fit, headline, state, tab
from playwright.sync_api import Page, expect

import workbench as wb
from workbench.app.gradient_heads import summary as heads_summary
from workbench.app.gradient_saliency import summary as saliency_summary
from workbench.app.gradients import PARTS
from workbench.app.routing import PARTS as ROUTING
from workbench.models.reference import checkpoints
from workbench.results import specify, stored

MODEL, N, LENGTH = "zoo/tasks", 8, 24
ADDRESS = {
    **{"model": MODEL, "n": N, "task_a": "greater_than", "corruption_a": "year_01", "task_b": "induction"},
    **{"corruption_b": "value_swap", "page": 3, "length": LENGTH},
}
CORRUPTIONS = {"greater_than": "year_01", "induction": "value_swap"}
TASKS = f"induction:{CORRUPTIONS['induction']}"
FIGURES = {"Tasks": 1, "Layers": 1, "Heads": 0, "Training": 1, "Saliency": 1}


def wait_for(page: Page, part: str) -> None:
    """Until a part shows its figures, or its head grid."""
    drawn = page.locator(".gtitle:visible") if FIGURES[part] else page.get_by_role("grid").locator("visible=true")
    drawn.nth(max(FIGURES[part] - 1, 0)).wait_for(timeout=SLOW)
    expect_to_fit(page, part)


def test_each_part_draws_what_python_finds(page: Page, app: App, kept: None) -> None:

    def result(analysis: str, model: str = MODEL, task: str = "greater_than", **params: object) -> xr.Dataset:
        found = stored(specify(analysis, model, wb.task(task, n=N, corruption=CORRUPTIONS[task]), params))
        assert found is not None
        return found

    page.goto(app.address(**ADDRESS))
    wait_for(page, "Tasks")
    ds = result("gradient_alignment", tasks=TASKS)
    one, other = ds["task"].values.tolist()
    whole = ds.sel(module="all")
    value, low, high = (float(whole[f"cosine{end}"][0, 1]) for end in ("", "_low", "_high"))
    expect(headline(page)).to_contain_text(
        f"{one} and {other} have a cosine of {value:z.3f} ({low:z.3f} to {high:z.3f};"
    )
    both = page.get_by_role("gridcell", name=f"{other} and {one}, {value:.3f}, interval {low:.3f} to {high:.3f}")
    both.click()
    expect(both).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")  # the pair is still shown below, so that its outline comes back
    expect(page.get_by_role("gridcell", name=f"{one} and {other}, ")).to_have_attribute("aria-selected", "true")
    tab(page, "Layers").click()
    wait_for(page, "Layers")
    lowest = float(ds["cosine"].sel(module="L0")[0, 1])
    expect(page.locator(".main-svg text", has_text=f"{lowest:z.2f}").first).to_be_visible()
    tab(page, "Heads").click()
    wait_for(page, "Heads")
    circuits = [result("head_patching", task=name) for name in CORRUPTIONS]
    expect(headline(page)).to_have_text(heads_summary(ds, wb.overlap(*circuits, top=0.125), one, other))
    tab(page, "Training").click()
    wait_for(page, "Training")
    start = result("gradient_alignment", f"{MODEL}@{checkpoints(MODEL)[0]}", tasks=TASKS).sel(module="all")
    expect(headline(page)).to_contain_text(f"at step {checkpoints(MODEL)[0]} {float(start['cosine'][0, 1]):z.3f} (")
    tab(page, "Saliency").click()
    wait_for(page, "Saliency")
    expect(headline(page)).to_have_text(saliency_summary(result("task_saliency", tasks=TASKS), 2))
    assert state(page)["gradient"] == str(list(PARTS).index("Saliency"))


def test_a_dense_model_has_a_map_of_its_stream(page: Page, app: App) -> None:
    page.goto(app.address(**{**ADDRESS, "page": 2, "route": list(ROUTING).index("Map")}))
    expect(headline(page)).to_contain_text("keeps neighbourhoods with a trustworthiness of", timeout=SLOW)
    expect(page.locator("canvas:visible").first).to_be_visible()
    told, each = page.locator(".gtitle:visible").first, N * (LENGTH - 1)  # of each task, BOS left out
    expect(told).to_contain_text(f"all {2 * each} tokens")
    page.get_by_text("select", exact=True).first.click()
    expect(told).to_contain_text(f"{each} of {2 * each} tokens selected")
    page.get_by_role("button", name="Router logits").click()
    expect(headline(page)).to_contain_text(f"{MODEL} has no routers")
