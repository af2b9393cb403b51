"""The command line: flags from signatures, results as netCDF, errors in one line, exit codes that mean something."""

import json

import numpy as np
import pytest

from workbench import store
from workbench.analyses import ANALYSES
from workbench.cli import FAILED, RED, main, parser
from workbench.engine import run
from workbench.tasks import TASKS, make_task

PATCH = ["run", "head_patching", "--task", "subject_verb", "--n", "8", "--draws", "10", "--device", "cpu"]


def failure(capsys, *arguments) -> str:
    """The one line a command that cannot work leaves on stderr."""
    assert main([*arguments]) == FAILED
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("workbench: ")
    return lines[0]


@pytest.fixture
def tiny(saved) -> str:
    return str(saved("gpt2"))


def test_a_run_is_saved_and_is_what_python_gives(tiny, tmp_path, capsys):
    out = tmp_path / "result.nc"
    assert main([*PATCH, "--model", tiny, "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    kept = store.load(out)
    again = run("head_patching", tiny, make_task("subject_verb", n=8), draws=10, refresh=True)
    np.testing.assert_array_equal(kept["effect"], again["effect"])
    assert summary["dims"] == {"layer": 2, "head": 4} and summary["file"] == str(out)
    assert summary["largest"] == pytest.approx(float(abs(kept["effect"]).max()))


def test_own_pairs_come_from_a_file(tiny, tmp_path, capsys):
    rows = [
        {
            "clean": f"The {noun} near the dog",
            "corrupted": f"The {noun}s near the dog",
            "answer": " is",
            "wrong": " are",
        }
        for noun in ("cat", "key", "boy")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["run", "head_patching", "--model", tiny, "--task", str(path), "--device", "cpu", "--json"]
    assert main(arguments) == 0
    assert "pairs (as given)" in json.loads(capsys.readouterr().out)["title"]


@pytest.mark.parametrize("name", ANALYSES)
def test_every_keyword_of_an_analysis_is_a_flag_with_its_default(name):
    options = parser().parse_args(["run", name, "--model", "m", "--task", "t"])
    for parameter in ANALYSES[name].parameters.values():
        assert getattr(options, parameter.name) == parameter.default


def test_models_and_tasks_are_listed(capsys):
    assert main(["models", "--json"]) == 0
    assert "zoo/tasks" in json.loads(capsys.readouterr().out)
    assert main(["tasks", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(TASKS)
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in TASKS)


def test_check_prints_the_card_and_red_has_its_own_exit_code(saved, words, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    assert main(["check", str(saved("llama")), "--device", "cpu"]) == 0
    assert "trust card: green" in capsys.readouterr().out
    settings = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    base = AutoModelForCausalLM.from_pretrained(saved("gpt2"))
    get_peft_model(base, settings).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert main(["check", str(tmp_path), "--device", "cpu", "--json"]) == RED
    assert json.loads(capsys.readouterr().out)["colour"] == "red"
    assert main(["check", str(tmp_path), "--device", "cpu", "--merge"]) == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--model", "zoo/nope"], "it has: zoo/tasks"),
        (["--model", "zoo/tasks", "--task", "ioj"], "Did you mean 'ioi'"),
        (["--model", "zoo/tasks", "--corruption", "x"], "it has: number"),
        (["--model", "zoo/tasks", "--n", "0"], "ask for n >= 8"),
        (["--model", "/no/such/folder"], "There is no directory"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(changed, said, capsys):
    assert said in failure(capsys, *PATCH, *changed)


def test_a_wrong_flag_is_a_wrong_command_line():
    with pytest.raises(SystemExit) as caught:
        main([*PATCH, "--model", "zoo/tasks", "--nope", "1"])
    assert caught.value.code == 2


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tiny, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    assert "WORKBENCH_HOME" in failure(capsys, *PATCH, "--model", tiny, "--out", str(blocked / "result.nc"))
    assert blocked.read_text() == "kept" and sorted(p.name for p in tmp_path.iterdir()) == ["file", "home"]
