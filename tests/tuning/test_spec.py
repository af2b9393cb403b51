"""A fine-tune's settings: checked where they enter, the same from a file, a mapping and a job."""

import json

import pytest

from workbench import spec as spec_module
from workbench.aggregators import TORCHJD, WEIGHTINGS, make_aggregator
from workbench.registry import WorkbenchError
from workbench.spec import AGGREGATORS, SpecError, read_spec
from workbench.tasks._base import TaskError

SPEC = {"model": "zoo/tasks", "tasks": ["ioi", {"name": "colored_objects", "weight": 2}]}


def test_defaults_are_filled_in_and_plain_data_gives_the_same_spec():
    spec = read_spec(SPEC)
    assert spec.tasks[1] == {"name": "colored_objects", "corruption": "query", "target": "answer", "weight": 2.0}
    assert spec.options == {"r": 8, "alpha": 16, "dropout": 0.0, "dora": False}
    assert read_spec(json.loads(json.dumps(spec.plain))) == spec
    assert spec.changed(steps=7).steps == 7 and spec.steps == 200


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_is_the_same_as_its_settings(tmp_path, suffix):
    (tmp_path / f"tune{suffix}").write_text(json.dumps({**SPEC, "learning_rate": 0.001}))
    assert read_spec(tmp_path / f"tune{suffix}") == read_spec(SPEC)


def test_own_rows_lie_beside_the_file_that_names_them(tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,answer\na b, c\n")
    (tmp_path / "tune.yaml").write_text("model: zoo/tasks\ntasks:\n- name: mine\n  path: mine.csv\n")
    assert read_spec(tmp_path / "tune.yaml").tasks[0]["rows"] == [{"prompt": "a b", "answer": " c"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stepps": 3}, "no setting 'stepps'; it has: model"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
        ({"learning_rate": -1}, "learning_rate is -1.0; it must be 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"aggregator": "best"}, "aggregator is 'best'; it must be one of mean"),
        ({"method": "lorra"}, "no method 'lorra'.*Did you mean 'lora'"),
        ({"options": {"rank": 3}}, "Method 'lora' has no parameter 'rank'; it has: r, alpha"),
        ({"telemetry": {"sinks": {}}}, "no analysis 'sinks'"),
        ({"tasks": []}, "lacks 'tasks'; give a list of names"),
        ({"tasks": ["ioi", "ioi"]}, "Two tasks have the same name"),
        ({"tasks": [{"name": "ioi", "weight": 0}]}, "weight of 'ioi' is 0; it must be a number over 0"),
        ({"tasks": [{"name": "ioi", "corruption": "x"}]}, "no corruption 'x'; it has"),
        ({"tasks": [{"name": "ioi", "target": "x"}]}, "must be one of answer, wrong"),
        ({"tasks": [{"nam": "ioi"}]}, "A task has 'nam'"),
        ({"batch": 1}, "batch is 1, but there are 2 tasks"),
        ({"precision": "fp16"}, "precision is 'fp16'; it must be one of no, bf16"),
        ({"temperature": 0}, "temperature is 0.0; it must be over 0"),
    ],
)
def test_what_is_wrong_is_named(change, said):
    with pytest.raises(WorkbenchError, match=said):
        read_spec({**SPEC, **change})


def test_a_row_that_cannot_be_used_is_named():
    rows = [{"prompt": "a", "answer": " b"}, {"prompt": "a", "answer": ""}]
    with pytest.raises(TaskError, match="row 2 needs 'prompt' and 'answer'"):
        read_spec({**SPEC, "tasks": [{"name": "mine", "rows": rows}]})


def test_files_that_are_none(tmp_path):
    with pytest.raises(SpecError, match="no file"):
        read_spec(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(SpecError, match="not YAML"):
        read_spec(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(SpecError, match="holds a list"):
        read_spec(tmp_path / "list.yaml")


def test_one_spec_has_one_name_and_data_of_its_own():
    spec = read_spec(SPEC)
    assert spec.name == read_spec(SPEC).name
    assert spec.changed(device="cpu").name == spec.name
    assert spec.changed(learning_rate=1.0).name != spec.name
    assert spec.changed(learning_rate=1.0, method="full", options={}).data_key == spec.data_key
    assert spec.changed(seed=1).data_key != spec.data_key


def test_every_aggregator_named_is_there():
    assert set(AGGREGATORS) == set(WEIGHTINGS) | set(TORCHJD)
    for name in TORCHJD:
        assert callable(make_aggregator(name))
    assert spec_module.LOGGERS
