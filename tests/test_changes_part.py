"""The Changes part without a browser: what it asks for, what it draws, and the code it shows."""

import asyncio
from typing import Any

import param
import plotly.graph_objects as go
import pytest

import workbench as wb
from workbench.analyses import compare
from workbench.app.changes import APART, KINDS, ChangesPart, sources, summary
from workbench.app.parts import Theme
from workbench.app.runner import Runner
from workbench.models.reference import checkpoints
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.tuning import tune

TASKS = ["ioi", "colored_objects"]
TRACED = [name for name in KINDS if name != "Routing"]  # on a model without routers


class Here(Runner):
    """A runner that computes in this process and remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict] = []

    async def fetch(self, place: str, ticket: int, spec: Any) -> Any:
        self.asked.append(spec)
        return computed(spec)


def computed(spec: Any) -> Any:
    return wb.run(spec["analysis"], {**spec["model"], "device": "cpu"}, spec["task"], **spec["params"])


def part(source: str = "", before: int = 0, after: int = 0, **chosen: Any) -> ChangesPart:
    """A part as it stands after its settings were chosen, before it asks for anything."""
    session = Session(model="zoo/tasks", task_a=TASKS[0], task_b=TASKS[1], n=16, length=16)
    made = ChangesPart(session, Here(), Theme(), **chosen)
    if source:
        with param.discard_events(made):
            made.param.source.objects = [source]
            for name in ("before", "after"):
                made.param[name].objects = checkpoints(source)
            made.param.update(source=source, before=before, after=after)
    return made


def test_the_ends_of_the_sessions_model_are_compared_first():
    made = part()
    asyncio.run(made.open())
    steps = checkpoints("zoo/tasks")
    assert (made.source, made.before, made.after) == ("zoo/tasks", steps[0], steps[-1])
    asked = {(spec["analysis"], spec["model"]["reference"], spec["task"]["seed"]) for spec in made._runner.asked}
    assert asked == {("edge_attribution", f"zoo/tasks@{step}", 0) for step in (steps[0], steps[-1])}
    assert all(isinstance(slot._figure, go.Figure) for slot in made._slots)
    assert "changed beyond the noise" in made._headline._alert.object


@pytest.mark.parametrize("kind", TRACED)
def test_the_code_shown_gives_what_is_drawn(kind, monkeypatch):
    made = part("zoo/tasks", 2000, 3500, kind=kind, viewed=1)
    asyncio.run(made._refresh())
    named = {spec["task"]["name"] for spec in made._runner.asked}
    assert named == {TASKS[0] if kind == "Alignment" else TASKS[1]}  # alignment is of both
    figures = []
    monkeypatch.setattr(wb, "compare", compare, raising=False)
    monkeypatch.setattr(wb, "show", lambda ds, view, show=wb.show: figures.append(show(ds, view)))
    exec(made._code._text.object.removeprefix("```python\n").removesuffix("\n```"))
    assert len(figures) == len(KINDS[kind].views)
    for figure, slot in zip(figures, made._slots, strict=False):
        assert figure.layout.title.text == slot._figure.layout.title.text


def test_a_retest_asks_for_other_prompts():
    made = part("zoo/tasks", 0, 3500, retest=True, kind="Heads")
    specs = made.specs()
    assert [spec["task"]["seed"] for spec in specs] == [0, 0, APART, APART]
    assert [spec["model"]["reference"] for spec in specs] == ["zoo/tasks@0", "zoo/tasks@3500"] * 2
    asyncio.run(made._refresh())
    a, b, *again = (computed(spec) for spec in specs)
    found = compare(a, b, retest=(again[0], again[1]))
    assert summary(found).rpartition(" ")[2] in made._headline._alert.object.replace("\\", "")
    assert "retest=(c, d)" in made._code._text.object


def test_what_cannot_be_traced_is_said():
    made = part("zoo/tasks", 2000, 3500, kind="Routing")
    asyncio.run(made._refresh())
    assert "no experts" in made._headline._alert.object and not any(slot._figure for slot in made._slots)
    same = part("zoo/tasks", 2000, 2000)
    asyncio.run(same._refresh())
    assert "same checkpoint" in same._headline._alert.object and not same._runner.asked


def test_an_adapter_of_a_run_is_merged(saved):
    given = {"model": str(saved("gpt2")), "tasks": ["subject_verb", "ioi"], "steps": 2, "batch": 4, "held": 8}
    run = tune({**given, "examples": 16, "checkpoint": 1, "device": "cpu"})
    assert sources()[0] == run.reference
    made = part(run.reference, 0, 2)
    assert [spec["model"]["reference"] for spec in made.specs()] == [f"{run.reference}@{step}" for step in (0, 2)]
    assert all(spec["model"]["merge"] for spec in made.specs())
    answers = part(run.reference, 0, 2, kind="Answers").specs()
    assert len(answers) == 1 and answers[0]["params"]["after"] == f"{run.reference}@2"
    with pytest.raises(WorkbenchError, match="same checkpoint"):
        part(run.reference, 1, 1).specs()
