"""The parts of the Sinks page without a browser: what they ask for, and what they say of results built by hand."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.app import sink_causal, sink_dormant, sink_massive, sink_reuse, sink_scores, sink_secondary
from workbench.app.page import TracedPage
from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.app.sinks import PARTS, SinksPage
from workbench.registry import WorkbenchError
from workbench.schema import concat
from workbench.session import Session

MODEL = "zoo/tasks"
# Parts that read running text alone, of both tasks.
TEXT = {"Scores": "sink_scores", "Secondary": "secondary_sinks", "Massive": "massive_activations"}


def session(**changes: object) -> Session:
    settings = {"task_a": "ioi", "corruption_a": "abc", "task_b": "induction", "n": 16, "seed": 3, "length": 32}
    return Session(model=MODEL, **settings | changes)


def part(name: str, of: Session | None = None, **chosen: object) -> TracedPage:
    """A part as it stands after its settings were chosen; a change later would ask a running page for results."""
    return PARTS[name](of or session(), Runner(), Theme(), **chosen)


def asked(specs: list[dict]) -> list[tuple]:
    return [
        (s["analysis"], s["model"]["reference"], s["task"]["name"], s["task"]["n"], s["task"]["seed"]) for s in specs
    ]


@pytest.mark.parametrize("name", PARTS)
def test_a_part_has_the_number_of_its_tab(name):
    made = part(name)
    assert (made.number, made.part, made.tab) == (1, list(PARTS).index(name), "sink")
    assert set(made.watched) <= set(Session.param)


@pytest.mark.parametrize(("name", "analysis"), list(TEXT.items()))
def test_running_text_of_both_tasks_is_read_at_the_length_chosen(name, analysis):
    specs = part(name)._specs()
    assert asked(specs) == [(analysis, MODEL, task, 16, 3) for task in ("ioi", "induction")]
    assert all(spec["params"]["length"] == 32 for spec in specs)
    assert len(part(name, session(task_b="ioi"))._specs()) == 1


def test_the_thresholds_of_massive_activations_can_be_chosen():
    massive = part("Massive", rule=sink_massive.RULES["20 x the median"])
    params = massive._specs()[0]["params"]
    assert (params["ratio"], params["threshold"]) == (20.0, 0.0)


def test_an_intervention_is_asked_for_as_chosen():
    causal = part("Causal test")
    (plain,) = causal._specs()
    assert plain["task"]["name"] == "ioi" and plain["params"]["what"] == "mask" and not causal._amount.visible
    causal = part("Causal test", what="rescale", amount=2.0, own=" 5 the ", viewed=1)
    (spec,) = causal._specs()
    assert spec["task"]["name"] == "induction" and causal._amount.visible
    assert {"what": "rescale", "amount": 2.0, "own": "5 the", "length": 32}.items() <= spec["params"].items()


def test_dormancy_and_reuse_are_measured_on_the_prompts_as_corrupted():
    for name, analysis in (("Dormant", "dormant_heads"), ("Reuse", "sink_aware_patching")):
        specs = part(name)._specs()
        assert [spec["task"]["corruption"] for spec in specs] == ["abc", "value_swap"]
        assert {spec["analysis"] for spec in specs} == {analysis}


def test_the_viewer_asks_for_what_is_set_beside_it():
    viewer = part("Viewer", session(prompt=31))  # of 16 prompts
    assert asked(viewer._specs()) == [("attention", MODEL, "ioi", 16, 3)]
    assert viewer._specs()[0]["params"] == {"prompt": 15, "length": 0, "layer": -1, "scores": True}
    first, second = part("Viewer", text="text", beside="task", viewed=1, layer=2)._specs()
    assert (first["task"]["name"], second["task"]["name"]) == ("induction", "ioi")
    assert first["params"]["length"] == 32 and first["params"]["layer"] == 2
    viewer = part("Viewer", beside="step", step="1000")
    assert [spec["model"]["reference"] for spec in viewer._specs()] == [MODEL, f"{MODEL}@1000"]
    assert viewer._steps.visible
    with pytest.raises(WorkbenchError, match="shown already"):
        part("Viewer", session(checkpoint="1000"), beside="step", step="1000")._specs()


def test_the_lengths_offered_hold_the_one_of_the_address():
    page = SinksPage(session(length=48), Runner(), Theme())
    assert 48 in page._length.options and page._length.value == 48


def test_scores_are_summed_up_with_uniform_attention():
    ds = synthetic.sinks()
    alpha = ds["alpha"].values[..., 0]
    said = sink_scores.summary([ds])
    assert f"{(alpha > 0.3).sum()} of {alpha.size} heads on {synthetic.TASKS[0]}" in said
    assert f"{alpha.max():.2f}" in said and "uniform attention would give 0.25" in said


def test_what_is_not_there_is_said():
    there, none = synthetic.leveled(), synthetic.leveled()
    none["count"] = none["count"] * 0
    said = sink_secondary.summary([there, none])
    assert "2 secondary sinks in 8 tokens" in said and "no secondary sinks in 8 tokens" in said
    assert "(random directions: 0.5)" in said
    some, small = synthetic.massive(), synthetic.massive(-1)
    small["massive_share"] = small["massive_share"] * 0
    said = sink_massive.summary([some, small])
    assert (
        "massive activations in 80 % of sequences, most in layer 1, on" in said and "no massive activation on" in said
    )
    effects = synthetic.unsunk().isel(component=[0])
    effects = effects.assign_coords(verdict=("component", ["idle"]))
    said, severity = sink_causal.verdict(effects)
    assert "The primary sink is idle: +0.100 nats" in said and "no secondary sink here" in said and severity == "info"


def test_heads_that_are_dormant_here_and_active_there_are_named():
    ds = synthetic.resting(task=True)
    said = sink_dormant.summary(ds)
    assert said.endswith("Dormant on one task and active on another: L0H1.")
    first, second = ((ds["state"].values[task] == 1).sum() for task in (0, 1))
    assert f"{synthetic.TASKS[0]}: {first} dormant" in said and f"{synthetic.TASKS[1]}: {second} dormant" in said
    about = sink_dormant.about(ds, [0, 1])
    assert (
        about.startswith(f"L0H1 is dormant on {synthetic.TASKS[0]} (D ") and f"active on {synthetic.TASKS[1]}" in about
    )
    assert sink_dormant.about(ds, [7, 0]) == sink_dormant.about(ds, []) == ""
    same = concat({"a": synthetic.resting(), "b": synthetic.resting()}, "task")
    assert "No head is dormant on one and active on another." in sink_dormant.summary(same)


def test_parked_heads_and_both_overlaps_are_named():
    plain, ds = synthetic.overlaps(), synthetic.parked()
    beyond = plain.assign(shared=plain["shared"] * 0, iou=plain["iou"] * 0)
    said = sink_reuse.summary({sink_reuse.BEYOND: beyond, sink_reuse.PLAIN: plain}, [ds])
    names = [f"L{layer}H{head}" for layer, head in np.argwhere(plain["shared"].values)]
    assert f"by plain patching, {', '.join(names)} (IoU 0.50" in said and "beyond the sink, none (IoU 0.00" in said
    assert said.endswith(f"Parked heads: L1H2 on {synthetic.TASKS[0]}.")


@pytest.mark.parametrize("count", [0, 2])
def test_a_figure_that_has_nothing_to_show_is_a_sentence(count):
    ds = synthetic.leveled().assign_attrs(sinks=count)
    ds["alignment_n"] = ds["alignment_n"] * (count > 0)
    secondary = part("Secondary")
    secondary._results = [ds]
    with ThreadPoolExecutor(1) as pool:  # the browser tests keep a loop in the main thread
        pool.submit(lambda: asyncio.run(secondary._look())).result()
    shown = [slot._figure is not None for slot in (secondary._levels, secondary._norms, secondary._stages)]
    assert shown == [True, count > 0, count > 0]
    said = f"It takes 3 secondary sinks or more; {count} were found."
    assert secondary._directions._box[0].object == said
