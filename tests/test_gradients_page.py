"""The Gradients page and the map of tokens without a browser: what their parts ask for, and what they say of it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench.app import (
    gradient_heads,
    gradient_layers,
    gradient_part,
    gradient_saliency,
    gradient_tasks,
    gradient_training,
    routing_map,
)
from workbench.app.further import FurtherTasks, beside, further
from workbench.app.gradients import PARTS
from workbench.app.main import restore
from workbench.app.parts import Theme
from workbench.app.routing_map import MapPart
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.tasks import TASKS

MODEL, N, OTHER = "zoo/tasks", 16, "induction"
every_part = pytest.mark.parametrize("name", PARTS)


@pytest.fixture(scope="module")
def model():
    return wb.load(MODEL)


@pytest.fixture(scope="module")
def aligned(model) -> xr.Dataset:
    return wb.run("gradient_alignment", model, wb.task("ioi", n=N), tasks="colored_objects,induction", batches=4)


@pytest.fixture(scope="module")
def mapped(model) -> xr.Dataset:
    return wb.run("embedding", model, wb.task("ioi", n=N), tasks=OTHER, length=24, sequences=8)


def session(**changes: object) -> Session:
    settings = {"model": MODEL, "task_a": "ioi", "corruption_a": "abc", "task_b": "colored_objects", "n": N, "seed": 3}
    return Session(**settings | changes)


def part(name: str, of: Session | None = None) -> Any:
    return PARTS[name](of or session(), Runner(), Theme())


def finish(coroutine) -> None:
    """Run a coroutine in a loop of its own; the browser tests keep one in the main thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(coroutine)).result()


def by_hand(ds: xr.Dataset, module: str, one: int, other: int) -> str:
    """A cosine as the page writes it, from the arrays."""
    at = {name: ds[name].sel(module=module).values for name in ("cosine", "cosine_low", "cosine_high", "floor")}
    value, low, high, floor = (float(values[one, other]) for values in at.values())
    return f"{value:z.3f} ({low:z.3f} to {high:z.3f}; unrelated gradients ±{1.96 * floor:.3f})"


@every_part
def test_a_part_has_the_number_of_its_tab_and_reads_again_what_decides_it(name):
    made = part(name)
    assert (made.number, made.part, made.tab) == (3, list(PARTS).index(name), "gradient")
    assert set(made.watched) <= set(Session.param) and "others" in made.watched


@every_part
def test_all_tasks_are_compared_with_the_corruptions_chosen(name):
    spec = part(name, session(others="induction,ioi,nonsense"))._specs()[0]
    assert spec["analysis"] == ("task_saliency" if name == "Saliency" else "gradient_alignment")
    assert (spec["task"]["name"], spec["task"]["corruption"], spec["task"]["n"]) == ("ioi", "abc", N)
    assert spec["params"]["tasks"] == f"colored_objects:value_swap,{OTHER}"


def test_further_tasks_are_those_known_beside_the_two():
    assert further(session(others="induction,ioi,<b>")) == [OTHER]
    assert further(session()) == []
    assert beside(session(task_b="ioi", others=OTHER)) == OTHER
    with pytest.raises(WorkbenchError, match="Both tasks are the same"):
        beside(session(task_b="ioi"))


def test_the_field_of_further_tasks_follows_the_session_and_leads_it():
    of = session(others=OTHER)
    field = FurtherTasks(of)._field
    assert field.value == [OTHER] and set(field.options) == set(TASKS) - {"ioi", "colored_objects"}
    field.value = [OTHER, "greater_than"]
    assert sorted(of.others.split(",")) == ["greater_than", OTHER]
    of.task_b = OTHER
    assert field.value == ["greater_than"] and "colored_objects" in field.options


def test_an_address_carries_known_further_tasks_only():
    of = Session()
    assert restore(of, {"others": [b"induction,greater_than"]}, [MODEL]) == ""
    assert of.others == "induction,greater_than"
    assert "others=induction,what" in restore(of, {"others": [b"induction,what"]}, [MODEL])
    assert of.others == "induction,greater_than"


def test_heads_read_the_circuits_of_both_tasks_and_need_two():
    specs = part("Heads")._specs()
    assert [spec["analysis"] for spec in specs] == ["gradient_alignment", "head_patching", "head_patching"]
    with pytest.raises(WorkbenchError, match="Both tasks are the same"):
        part("Heads", session(task_b="ioi", others=OTHER))._specs()


def test_training_reads_every_checkpoint_and_the_end():
    kept = [f"{MODEL}@{step}" for step in checkpoints(MODEL)]
    specs = part("Training")._specs()
    assert kept and [spec["model"]["reference"] for spec in specs] == [*kept, MODEL]
    with pytest.raises(WorkbenchError, match="No training checkpoints are kept with 'elsewhere'"):
        part("Training", session(model="elsewhere"))._specs()


def test_the_code_shown_for_training_is_python():
    training = part("Training")
    training._drawn = training._specs()
    source = training._python().removeprefix("```python\n").removesuffix("\n```")
    compile(source, "shown", "exec")
    assert f"steps = {[str(step) for step in checkpoints(MODEL)]}" in source


def test_the_headline_of_tasks_is_the_most_opposed_pair_beside_its_noise(aligned):
    cosine, clear = (aligned[name].sel(module="all").values for name in ("cosine", "clear"))
    found = [(cosine[i, j] - 2 * clear[i, j], i, j) for i in range(3) for j in range(i + 1, 3)]
    _, one, other = min(found)
    said = gradient_tasks.summary(aligned)
    assert by_hand(aligned, "all", one, other) in said
    counts = [sum(bool(clear[i, j]) and np.sign(cosine[i, j]) == sign for _, i, j in found) for sign in (1, -1)]
    assert f"Of 3 pairs of tasks, {counts[0]} agree and {counts[1]} conflict" in said
    for task in aligned["task"].values:
        assert f"{task} {float(aligned['ceiling'].sel(module='all', task=task)):z.2f}" in said
    two = gradient_tasks.summary(aligned.isel(task=[0, 1], receiver=[0, 1]))
    assert by_hand(aligned, "all", 0, 1) in two and "pairs of tasks" not in two


def test_a_cell_and_the_field_below_choose_the_same_pair(aligned):
    names, made = aligned["task"].values.tolist(), part("Tasks")
    made._results, made._drawn = [aligned], made._specs()
    finish(made._draw())
    matrix, field = made._matrix.component, made._pair
    assert matrix.names == names and (matrix.selected, field.value) == ([0, 1], f"{names[0]}\n{names[1]}")
    for cell, pair in (([2, 1], (1, 2)), ([0, 2], (0, 2)), ([2, 0], (0, 2))):
        matrix.selected = cell
        assert (matrix.selected, field.value) == (cell, f"{names[pair[0]]}\n{names[pair[1]]}")
        assert f"{names[pair[0]]} and {names[pair[1]]}" in str(made._parts._figure.layout.title.text)
    matrix.selected = []
    assert matrix.selected == [0, 2], "the pair below is always outlined"
    field.value = f"{names[1]}\n{names[2]}"
    assert matrix.selected == [1, 2]
    made._results = [aligned.isel(task=[2, 1], receiver=[2, 1])]
    finish(made._draw())
    assert (matrix.selected, field.value) == ([0, 1], f"{names[2]}\n{names[1]}")


def test_layers_count_the_pairs_outside_the_noise(aligned):
    said = gradient_layers.summary(aligned)
    upper = np.triu(np.ones((3, 3), bool), 1)
    for name in ("L0", "L1", "L2"):
        at = aligned.sel(module=name)
        agree = int(((at["clear"].values > 0) & (at["cosine"].values > 0) & upper).sum())
        conflict = int(((at["clear"].values > 0) & (at["cosine"].values < 0) & upper).sum())
        assert f"{name} {agree} agree and {conflict} conflict" in said
    assert "of 3 in each layer (by chance 0.15 at most)" in said


def test_the_heads_in_both_circuits_stand_beside_the_others(aligned):
    one, other = aligned["task"].values[:2].tolist()
    heads = gradient_part.of_kind(aligned, "head")
    layers, count = len(set(heads["at_layer"].values)), heads.sizes["module"]
    member = np.zeros((2, layers, count // layers), np.int8)
    member[:, 0, 1] = member[:, 1, 0] = member[0, 1, 1] = 1
    shared = xr.Dataset({"member": (("task", "layer", "head"), member)}, coords={"task": [one, other]})
    cosine = {str(h["module"].item()): float(h.sel(task=one, receiver=other)["cosine"]) for _, h in each(heads)}
    both = [cosine.pop(name) for name in ("L0H1", "L1H0")]
    said = gradient_heads.summary(aligned, shared, one, other)
    assert f"The 2 in both circuits have a mean cosine of {np.mean(both):z.3f}" in said
    assert f"the other {count - 2} of {np.mean(list(cosine.values())):z.3f}" in said
    assert "No head is in both circuits" in gradient_heads.summary(aligned, shared * 0, one, other)


def each(heads: xr.Dataset):
    return ((place, heads.isel(module=place)) for place in range(heads.sizes["module"]))


def test_training_says_the_first_pair_at_the_start_and_the_end(aligned):
    changed = aligned.assign(cosine=aligned["cosine"] / 2)
    said = gradient_training.summary([changed, aligned], ["0", "final"])
    assert (
        f"at step 0 {by_hand(changed, 'all', 0, 1)}" in said and f"at the end {by_hand(aligned, 'all', 0, 1)}" in said
    )


def test_saliency_says_the_shares_at_end_beside_shuffled_tasks(model):
    ds = wb.run("task_saliency", model, wb.task("ioi", n=N), tasks=OTHER, draws=50)
    said, at = gradient_saliency.summary(ds, 1), ds.isel(layer=1, pos=-1)
    names = ("share", "share_low", "share_high", "share_null_low", "share_null_high")
    for row, task in enumerate(ds["task"].values):
        value, low, high, least, most = (float(at[name].values[row]) for name in names)
        assert f"{task} {value:.2f} ({low:.2f} to {high:.2f}; shuffled {least:.2f} to {most:.2f})" in said
    apart = int((ds["entropy"].values[1] < ds["entropy_null_low"].values[1]).sum())
    assert f"at {apart} of {ds.sizes['pos']} tokens (by chance {0.05 * ds.sizes['pos']:.1f})" in said


def map_part(of: Session, **chosen: object) -> MapPart:
    return MapPart(of, Runner(), Theme(), **chosen)


def test_the_map_is_of_all_tasks_in_the_space_and_layer_chosen():
    (spec,) = map_part(session(others=OTHER, layer=1, length=32), method="umap")._specs()
    assert spec["analysis"] == "embedding" and spec["task"]["name"] == "ioi"
    wanted = {"space": "residual", "method": "umap", "layer": 1, "length": 32, "sequences": N}
    assert spec["params"] == {**spec["params"], **wanted, "tasks": f"colored_objects,{OTHER}"}


def test_a_model_without_routers_has_a_map_of_its_stream_only():
    assert map_part(session())._specs()
    with pytest.raises(WorkbenchError, match=r"has no routers.* The residual stream has a map in every model"):
        map_part(session(), space="router")._specs()
    assert map_part(session(model="zoo/tasks-moe"), space="router")._specs()


def test_the_map_says_how_far_it_can_be_trusted_beside_shuffled_ones(mapped):
    said = routing_map.summary(mapped)
    seen, null = (float(mapped[name]) for name in ("trustworthiness", "trustworthiness_null"))
    assert f"trustworthiness of {seen:.2f} (shuffled maps {null:.2f})" in said
    same = mapped.sel(measured="on the map", component="task")
    assert f"task {float(same['same']):.0%} (shuffled {float(same['same_null']):.0%})" in said
    assert "expert" not in said  # which a dense model has none of


def title(made: MapPart) -> str:
    figure = made._taken._figure
    assert figure is not None
    return str(figure.to_dict()["layout"]["title"]["text"])


def test_what_a_lasso_takes_is_told_and_a_new_map_has_nothing_taken(mapped):
    made = map_part(session())
    made._results, made._drawn = [mapped], made._specs()
    finish(made._draw())
    component = made._map.component
    assert component is not None and f"all {mapped['x'].size:,} tokens" in title(made)
    component.param.update(colour_by="kind", selected=np.array([0, 5, 9], "<u4").tobytes())
    finish(made._take())
    assert f"3 of {mapped['x'].size:,} tokens selected" in title(made)
    finish(made._draw())
    assert component.param.values()["selected"] == b"" and component.param.values()["colour_by"] == "kind"
