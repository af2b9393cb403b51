"""The Routing page without a browser: edits and their history, what its parts ask for, and what they say of results."""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

import workbench as wb
from workbench.analyses._route_edits import parse_edits
from workbench.app import (
    routing_causal,
    routing_load,
    routing_part,
    routing_special,
    routing_surgery,
    routing_tasks,
    routing_together,
)
from workbench.app.parts import Theme
from workbench.app.routing import PARTS
from workbench.app.routing_edits import History, beside, edits_of, with_edit, without, written
from workbench.app.routing_part import dense_model, has_experts, names_experts
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints, zoo_names
from workbench.registry import WorkbenchError
from workbench.schema import concat
from workbench.session import Session
from workbench.tasks import TASKS, make_task
from workbench.views import expert_load, surgery_effects, task_flow

MODEL = "zoo/tasks-moe"
TEXT = "L2E5=mute; L1E3=force@S2; L0E1=0.5@3,END"


@pytest.fixture(scope="module")
def moe():
    return wb.load(MODEL)


def finish(coroutine) -> None:
    """Run a coroutine in a loop of its own; the browser tests keep one in the main thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(coroutine)).result()


def session(**changes: object) -> Session:
    settings = {
        "model": MODEL,
        "task_a": "ioi",
        "corruption_a": "abc",
        "task_b": "induction",
        "n": 16,
        "seed": 3,
        "length": 32,
    }
    return Session(**settings | changes)


def part(name: str, of: Session | None = None, **chosen: object) -> Any:
    return PARTS[name](of or session(), Runner(), Theme(), **chosen)


def asked(specs: list[dict]) -> list[tuple]:
    return [(spec["analysis"], spec["model"]["reference"], spec["task"]["name"]) for spec in specs]


def test_a_history_goes_back_and_on_and_a_new_edit_forgets_what_was_undone():
    start = History("a")
    three = start.edited("b").edited("c")
    assert (three.now, three.past, three.future) == ("c", ("a", "b"), ())
    assert three.undone().undone() == History("a", (), ("b", "c"))
    assert three.undone().undone().redone().redone() == three
    assert three.undone().edited("d") == History("d", ("a", "b"))


def test_at_its_ends_and_without_a_change_a_history_stays_as_it_is():
    start = History("a")
    assert start.undone() is start and start.redone() is start and start.edited("a") is start


@pytest.mark.parametrize(
    ("arguments", "edit"),
    [
        (("L2E5", "mute", 0.5, []), "L2E5=mute"),
        (("L1E3", "force", 0.5, ["S2"]), "L1E3=force@S2"),
        (("L0E1", "weigh", 0.5, ["3", "END"]), "L0E1=0.5@3,END"),
        (("L0E1", "weigh", 2.0, []), "L0E1=2"),
    ],
)
def test_an_edit_is_written_as_the_analysis_reads_it(arguments, edit):
    assert written(*arguments) == edit


def test_the_edits_written_are_those_the_analysis_understands(moe):
    task = make_task("ioi", n=8)
    prompts = task.encode(moe.tokenizer, bos=moe.bos)
    text = ""
    for expert, what, at in (("L0E2", "mute", []), ("L1E3", "force", ["S2"]), ("L0E1", "weigh", ["IO", "END"])):
        text = with_edit(text, written(expert, what, 0.5, at))
    assert "; ".join(map(str, parse_edits(text, moe, prompts))) == text


def test_an_edit_of_the_same_expert_at_the_same_tokens_gives_way():
    assert with_edit("", "L2E5=mute") == "L2E5=mute"
    assert with_edit(TEXT, "L2E5=0.5") == "L1E3=force@S2; L0E1=0.5@3,END; L2E5=0.5"
    assert with_edit(TEXT, "L0E1=mute@END,3") == "L2E5=mute; L1E3=force@S2; L0E1=mute@END,3"
    assert with_edit("l2e5 = mute@all", "L2E5=0.5") == "L2E5=0.5"
    assert with_edit(TEXT, "L1E3=mute@END").startswith(TEXT)


def test_one_edit_is_taken_out_and_the_rest_stays():
    assert edits_of(f" {TEXT}\n;") == TEXT.split("; ")
    assert without(TEXT, 1) == "L2E5=mute; L0E1=0.5@3,END"
    assert without("L2E5=mute", 0) == ""


def test_what_changed_in_a_text_is_marked_and_no_text_becomes_markup():
    shown = beside("<b>to", "Ann . At <i>noon", "Bob . At <i>noon")
    assert "<q>&lt;b&gt;to</q> <mark>Ann</mark> . At &lt;i&gt;noon" in shown
    assert "<mark>Bob</mark> . At &lt;i&gt;noon" in shown and shown.count("<mark>") == 2
    assert "<mark>" not in beside("to", "Ann", "Ann")
    assert "<b>" not in routing_surgery.texts(synthetic.operated())


@pytest.mark.parametrize("task", TASKS)
def test_positions_offered_are_those_every_prompt_has(task, moe):
    made = make_task(task, n=16)
    prompts = made.encode(moe.tokenizer, bos=moe.bos)
    assert set(routing_surgery.positions(made)) == set.intersection(*(set(marks) for marks in prompts.positions))
    assert routing_surgery.positions(made)[-1] == "END"


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_the_number_of_its_tab(name):
    made = part(name)
    assert (made.number, made.part, made.tab) == (2, list(PARTS).index(name), "route")
    assert set(made.watched) <= set(Session.param)


@pytest.mark.parametrize("name", ["Load", "Tasks", "Together", "Specialisation"])
def test_running_text_of_both_tasks_is_read_at_the_length_chosen(name):
    specs = part(name)._specs()
    assert asked(specs) == [("routing", MODEL, "ioi"), ("routing", MODEL, "induction")]
    assert all(spec["params"]["length"] == 32 for spec in specs)


def test_surgery_needs_the_loads_and_the_prompts_of_one_task():
    surgery = part("Surgery", viewed=1)
    assert asked(surgery._specs()) == [("routing", MODEL, "induction")]
    assert part("Surgery")._task == make_task("ioi", n=16, seed=3, corruption="abc")


def test_causal_parts_take_the_prompts_as_they_are_corrupted():
    (spec,) = part("Causal")._specs()
    assert spec["analysis"] == "routing_circuit" and spec["task"]["corruption"] == "abc"


def test_training_reads_every_checkpoint_and_the_end():
    kept = [f"{MODEL}@{step}" for step in checkpoints(MODEL)]
    assert kept
    specs = part("Training", viewed=1)._specs()
    assert asked(specs) == [("routing", reference, "induction") for reference in (*kept, MODEL)]


def test_a_model_without_checkpoints_is_said_in_a_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match="No training checkpoints are kept with 'elsewhere'"):
        part("Training", session(model="elsewhere"))._specs()


def test_one_task_twice_cannot_be_compared_with_itself():
    with pytest.raises(WorkbenchError, match="choose two different ones in the sidebar"):
        part("Tasks", session(task_b="ioi"))._specs()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, True),
        ({"text_config": {"n_routed_experts": 4}}, True),
        ({"hidden_size": 64, "vocab_size": 9}, False),
        ({"num_experts": 1, "expert_dropout": 0.5, "use_experts": True}, False),
        ({"num_experts": None}, False),
    ],
)
def test_experts_are_found_in_a_configuration(config, found):
    assert names_experts(config) is found


def test_a_model_that_cannot_be_read_is_left_to_loading(tmp_path):
    assert has_experts(str(tmp_path / "nothing")) is None and has_experts("zoo/nope") is None
    assert has_experts("zoo/tasks") is False and has_experts(MODEL) is True


def test_a_dense_model_gets_one_sentence_that_says_what_to_load(monkeypatch):
    said = dense_model("zoo/tasks")
    instead = [name for name in zoo_names() if has_experts(name)]
    assert MODEL in instead and f"choose {' or '.join(instead)} in the sidebar" in said
    monkeypatch.setattr(routing_part, "zoo_names", lambda: ["zoo/tasks"])
    assert "load a mixture of experts in the sidebar" in dense_model("zoo/tasks")


@pytest.mark.parametrize("name", [name for name in PARTS if name != "Map"])  # which is of the stream too
def test_no_part_asks_for_anything_of_a_dense_model(name, monkeypatch):
    made = part(name, session(model="zoo/tasks"))

    async def never(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(made._runner, "fetch", never)
    finish(made._refresh())
    assert not made._body.visible and made._results == []
    assert "has no routers" in str(made._headline._alert.object).replace("\\", "")


def test_loads_of_results_that_were_joined_stand_beside_their_nulls():
    one = synthetic.routed()
    joined = concat({"a": one, "b": one.assign(load_null_low=one["load_null_low"] - 0.01)}, dim="task")
    title = str(expert_load(joined).layout.title.text)
    even, low, high = (float(one[f"load_null{end}"]) for end in ("", "_low", "_high"))
    assert f"an even router: {even:.3f}" in title and f"by chance {low - 0.01:.3f} to {high:.3f}" in title


def measured() -> xr.Dataset:
    """As `routing` gives it, with the numbers of balance too: the first layer is more uneven than chance."""
    ds, layers = synthetic.routed(), np.array([1.5, 1.0])
    for name in routing_load.BALANCE:
        ds = ds.assign({name: ("layer", layers), f"{name}_null": ("layer", layers * 0 + 1)})
        ds = ds.assign({f"{name}_null_high": ("layer", layers * 0 + 1.2)})
    ends = {"": 0.0, "_low": -0.1, "_high": 0.1}
    return ds.assign({f"{n}{end}": ("layer", layers + d) for n in routing_load.MEANS for end, d in ends.items()})


def test_the_flow_keeps_tasks_and_experts_in_their_order():
    (sankey,) = task_flow(synthetic.routed_tasks()).data
    tasks, places = synthetic.routed_tasks().sizes["task"], np.array(sankey.node.y)
    assert (np.diff(places[:tasks]) > 0).all() and (np.diff(places[tasks:]) > 0).all()
    assert len(places) == len(sankey.node.label) == len(sankey.node.x)


def test_the_figure_of_surgery_leaves_out_the_text_that_the_page_shows():
    ds = synthetic.operated()
    titles = [json.loads(surgery_effects(ds, texts=texts).to_json())["layout"]["title"]["text"] for texts in (0, 1)]
    assert ["after: …" in title for title in titles] == [False, True]


def test_the_numbers_of_balance_stand_beside_an_even_router():
    ds = measured()
    shown = routing_load.table(ds)
    assert shown.count("<tr>") == 1 + ds.sizes["layer"]
    first, second = shown.split("<tr>")[2:]
    assert first.count("<td><b>1.500</b><small>even 1.000, 95 % 1.200</small>") == len(routing_load.BALANCE)
    assert second.count("<td>1.000<small>even 1.000, 95 % 1.200</small>") == len(routing_load.BALANCE)
    assert first.count("<td>1.500<small>1.400 to 1.600</small>") == len(routing_load.MEANS)


def test_each_part_says_the_numbers_of_its_result_beside_the_null():
    ds, tasks = measured(), synthetic.routed_tasks()
    assert f"gets most tokens of {ds.attrs['task']} ({float(ds['load'].max()):.0%})" in routing_load.summary([ds])
    assert "layer 1 is the least even (balance loss 1.50, an even router 1.00)" in routing_load.summary([ds])
    tasks = tasks.assign_coords(measured=["task, first choice", "task given the token"]).assign(shared=((), 0.5))
    at = tasks.sel(measured="task given the token")
    layer = int((at["specialisation"] - at["specialisation_random_high"]).values.argmax())
    value, null = (float(at[f"specialisation{end}"][layer]) for end in ("", "_null_high"))
    said = routing_tasks.summary(tasks)
    assert f"tells {value:.3f}" in said and f"shuffled up to {null:.3f}" in said
    pair = ds.sel(layer=1)
    more = int((pair["coactivation_low"] > pair["coactivation_null"]).values.sum())
    diagonal = int((pair["coactivation_low"] > pair["coactivation_null"]).values.diagonal().sum())
    assert f"of 6 ordered pairs of experts {more - diagonal} are chosen together" in routing_together.summary(ds, 1)
    value, null, random = (ds[f"specialisation{end}"].values[0].max() for end in ("", "_null_high", "_random_high"))
    said = routing_special.summary([ds, ds])
    assert (
        f"own first expert in {value:.0%}" in said
        and f"(words shuffled {null:.0%}, random routers up to {random:.0%})" in said
    )


def test_where_every_token_goes_to_all_experts_their_weights_are_said():
    ds, weights = measured(), np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    null = {
        "gate_null": ((), 1 / 3),
        "gate_null_low": ("layer", [0.3, 0.31]),
        "gate_null_high": ("layer", [0.35, 0.36]),
    }
    said = routing_load.summary([ds.assign(gate=(("layer", "expert"), weights), **null).assign_attrs(dense=1)])
    assert "to all 3 experts of a layer" in said and "Even weights would be 33%" in said
    assert f"L3E2 gets most weight in {ds.attrs['task']} (60%; renamed 31.0% to 36.0%)" in said


def test_an_expert_counts_as_needed_only_above_its_controls_and_above_nothing():
    ds = synthetic.unstaffed()
    needed = (ds["lost"] > ds["lost_null_high"]) & (ds["lost_low"] > 0)
    said = routing_causal.lost(ds)
    assert said.startswith(f"{int(needed.sum())} of {needed.size} experts") and "most of all L0E1" in said
    none = ds.assign(lost_null_high=ds["lost"] + 1)
    assert routing_causal.lost(none) == "No expert costs the task more than random experts at as many tokens."
    assert str(synthetic.rerouted().attrs["task"]) in routing_causal.carried(synthetic.rerouted())


def test_what_surgery_changed_stands_beside_its_interval_and_other_experts():
    ds = synthetic.operated()
    said = routing_surgery.verdict(ds)
    assert said.startswith(f"{ds.attrs['edits']}. ")
    for name in ("metric", "probability", "loss"):
        change, low, high = (float(ds[f"{name}_change{end}"]) for end in ("", "_null_low", "_null_high"))
        assert f"{change:+z.3f} (" in said and f"other experts {low:+z.3f} to {high:+z.3f}" in said


def test_the_code_shown_for_training_is_python():
    training = part("Training")
    training._drawn = training._specs()
    source = training._python().removeprefix("```python\n").removesuffix("\n```")
    compile(source, "shown", "exec")
    assert f"steps = {[str(step) for step in checkpoints(MODEL)]}" in source
