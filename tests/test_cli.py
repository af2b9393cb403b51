"""The command line: what it prints, what it writes, and with which exit code it ends."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from workbench import cli
from workbench.analyses import ANALYSES
from workbench.models.reference import checkpoints, zoo_names
from workbench.results import run
from workbench.runs import Run, accuracy
from workbench.spec import Spec, read_spec
from workbench.store import load
from workbench.tasks import TASKS, Task, make_task
from workbench.tuning import estimate, tune

QUICK = {"head_patching": {"draws": 10}, "sink_scores": {"length": 12, "sequences": 3}, "attention": {"prompt": 2}}
SUMMARY = {"title", "primary", "dims", "largest", "seconds", "file"}
CASES = [(name, parameter) for name, analysis in ANALYSES.items() for parameter in analysis.parameters.values()]


def flags(params: dict) -> list[str]:
    return [part for name, value in params.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def gpt2(saved: Callable[[str], Path]) -> str:
    """The path of a tiny random GPT-2."""
    return str(saved("gpt2"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """`fails(*arguments)`: the one line on stderr with which a command ends with exit code 1."""

    def command(*arguments: str) -> str:
        assert cli.main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("workbench: ")
        return line

    return command


@pytest.fixture
def red(saved: Callable, words, tmp_path: Path) -> Path:
    """A saved LoRA adapter on GPT-2's fused attention matrix, which the traced model would lack."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(saved("gpt2"))
    config = LoraConfig(target_modules=["c_attn"], r=4, lora_alpha=8, fan_in_fan_out=True, init_lora_weights=False)
    folder = tmp_path / "adapter"
    get_peft_model(base, config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", QUICK)
def test_run_writes_what_the_function_gives(name, gpt2, tmp_path, monkeypatch, capsys):
    path = tmp_path / "made" / "result.nc"
    arguments = ["run", name, "--model", gpt2, "--task", "subject_verb", "--n", "8", "--seed", "3"]
    assert cli.main([*arguments, *flags(QUICK[name]), "--device", "cpu", "--out", str(path)]) == 0
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "another"))  # so that it is not merely read
    expected = run(name, {"reference": gpt2, "device": "cpu"}, make_task("subject_verb", n=8, seed=3), **QUICK[name])
    found = load(path)
    xr.testing.assert_equal(found, expected)
    assert found.attrs["params"] == expected.attrs["params"]
    assert capsys.readouterr().out.startswith("<xarray.Dataset>")


def test_run_says_in_json_what_was_found(gpt2, tmp_path, capsys):
    path = tmp_path / "a.nc"
    arguments = ["run", "head_patching", "--model", gpt2, "--task", "subject_verb", "--n", "8", "--draws", "10"]
    assert cli.main([*arguments, "--json", "--out", str(path)]) == 0
    said, ds = json.loads(capsys.readouterr().out), load(path)
    assert set(said) == SUMMARY
    assert said["title"] == ds.attrs["title"] and said["primary"] == "effect" and said["file"] == str(path)
    assert said["dims"] == {"layer": 2, "head": 4}
    assert said["largest"] == pytest.approx(float(abs(ds["effect"]).max()))
    # Again from the store: not computed, but the same.
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**said, "file": None}


def test_refresh_computes_again(gpt2, home):
    arguments = ["run", "attention", "--model", gpt2, "--task", "subject_verb", "--n", "8"]
    assert cli.main(arguments) == 0
    (kept,) = (home / "results").glob("attention-*.nc")
    written = kept.stat().st_mtime_ns
    assert cli.main(arguments) == 0 and kept.stat().st_mtime_ns == written
    assert cli.main([*arguments, "--refresh"]) == 0 and kept.stat().st_mtime_ns > written


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_of_own_pairs_is_a_task(suffix, gpt2, tmp_path):
    import pandas

    rows = [
        {
            "clean": f"When {a} and {b} went to the park , {a} gave a book to",
            "corrupted": f"When {a} and {c} went to the park , {a} gave a book to",
            "answer": f" {b}",
            "wrong": f" {c}",
        }
        for a, b, c in [("Mary", "John", "Tom"), ("Dan", "Anna", "Kate")] * 4
    ]
    table, pairs, out = pandas.DataFrame(rows), tmp_path / f"mine.{suffix}", tmp_path / "mine.nc"
    table.to_csv(pairs, index=False) if suffix == "csv" else table.to_json(pairs, orient="records", lines=True)
    arguments = ["run", "head_patching", "--model", gpt2, "--task", str(pairs), "--draws", "10", "--out", str(out)]
    assert cli.main(arguments) == 0
    expected = run("head_patching", gpt2, Task.from_records(rows, name="mine"), draws=10)
    xr.testing.assert_equal(load(out), expected)
    assert load(out).attrs["task"].startswith("mine")


def test_models_lists_the_zoo_with_its_checkpoints(capsys):
    assert cli.main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: checkpoints(name) for name in zoo_names()}
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == zoo_names()


def test_tasks_lists_the_registry_with_corruptions(capsys):
    assert cli.main(["tasks", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {name: row["corruptions"] for name, row in said.items()} == {
        name: list(family.corruptions) for name, family in TASKS.items()
    }
    assert all(set(row) == {"corruptions", "metric", "about"} for row in said.values())
    assert cli.main(["tasks"]) == 0
    for line, (name, family) in zip(capsys.readouterr().out.splitlines(), TASKS.items(), strict=True):
        assert line == f"{name}  [{', '.join(family.corruptions)}]  {family.about}"


def test_check_prints_a_green_card(gpt2, capsys):
    assert cli.main(["check", gpt2, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "trust card: green" in out and "✓ same numbers" in out
    assert cli.main(["check", gpt2, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["colour"] == "green" and {"name", "colour", "found", "fix"} == set(card["checks"][0])


def test_a_red_card_is_exit_code_three_and_blocks_a_run(red, fails, capsys):
    assert cli.main(["check", str(red)]) == 3
    out = capsys.readouterr().out
    assert "trust card: red" in out and "merge=True" in out
    assert cli.main(["check", str(red), "--merge"]) == 0
    capsys.readouterr()
    line = fails("run", "head_patching", "--model", str(red), "--task", "subject_verb", "--n", "8")
    assert "is red" in line and "merge=True" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "head_patching", "--model", "zoo/nope", "--task", "ioi"], "The zoo has no model 'zoo/nope'; it has: "),
        (["run", "head_patching", "--model", "/no/where", "--task", "ioi"], "There is no directory '/no/where'; give"),
        (["check", "/no/where"], "There is no directory '/no/where'; give the path of a model saved by"),
        (["app", "--models", "/no/where"], "There is no folder '/no/where'; name one whose directories are models."),
        (["app", "--port", "99999"], "Port 99999 cannot be used here; leave --port out, or name another."),
    ],
)
def test_what_is_not_there_is_one_line_with_the_way_out(arguments, expected, fails):
    assert expected in fails(*arguments)


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--task", "nope", f"There is no task 'nope'; there are: {', '.join(TASKS)}."),
        ("--task", "ioj", "subject_verb. Did you mean 'ioi'?"),
        ("--task", "/no/where.jsonl", "There is no file '/no/where.jsonl'; give the path of a .jsonl or .csv file."),
        ("--corruption", "nope", "Task 'ioi' has no corruption 'nope'; it has: s2_to_io, abc, value_swap."),
        ("--n", "0", "n is 0, so the task is empty; ask for n >= 8."),
        ("--batch", "0", "batch is 0; it must be 1 or more."),
        ("--dtype", "float8", "There is no dtype 'float8'; use one of float32, bfloat16, float16, float64."),
        ("--device", "gpu", "The device 'gpu' is not available on this machine; use 'cpu' or leave it out."),
    ],
)
def test_a_value_that_cannot_be_is_one_line_with_the_way_out(flag, value, expected, gpt2, fails):
    options = {"--model": gpt2, "--task": "ioi", "--n": "8", flag: value}
    assert expected in fails("run", "head_patching", *(part for pair in options.items() for part in pair))


def test_a_port_in_use_is_named(fails):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Port {port} cannot be used here" in fails("app", "--port", str(port))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["run"],
        ["run", "nope"],
        ["run", "head_patching", "--model", "zoo/tasks"],
        ["run", "head_patching", "--model", "zoo/tasks", "--task", "ioi", "--colour", "red"],
        ["run", "head_patching", "--model", "zoo/tasks", "--task", "ioi", "--positions", "nope"],
        ["run", "head_patching", "--model", "zoo/tasks", "--task", "ioi", "--draws", "many"],
        ["models", "--port", "1"],
    ],
)
def test_a_wrong_command_line_is_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: workbench")


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=lambda case: getattr(case, "name", case))
def test_every_parameter_of_an_analysis_is_a_flag(name, parameter, capsys):
    flag = f"--{parameter.name.replace('_', '-')}"
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", name, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"default {parameter.default}" in text.split(f" {flag} ")[-1]
    assert all(str(choice) in text for choice in parameter.choices)
    given = parameter.choices[-1] if parameter.choices else parameter.kind(7)
    written = [flag] if parameter.kind is bool else [flag, str(given)]
    read = cli.parser().parse_args(["run", name, "--model", "m", "--task", "t", *written])
    assert getattr(read, parameter.name) == given
    assert getattr(cli.parser().parse_args(["run", name, "--model", "m", "--task", "t"]), parameter.name) == (
        parameter.default
    )


def test_every_analysis_is_a_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^ +{name}\s", text, re.MULTILINE) for name in ANALYSES)


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(gpt2, tmp_path, fails):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "result.nc"  # a folder that cannot be made, whoever asks
    arguments = ["run", "attention", "--model", gpt2, "--task", "subject_verb", "--n", "8", "--out", str(out)]
    line = fails(*arguments)
    assert f"The result could not be written to '{out}'" in line and line.endswith("name another --out.")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_keeps_nothing(gpt2, tmp_path, fails):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    out = folder / "result.nc"
    line = fails("run", "attention", "--model", gpt2, "--task", "subject_verb", "--n", "8", "--out", str(out))
    assert "Permission denied" in line and list(folder.iterdir()) == []


def test_the_installed_script_does_the_same():
    script = Path(sys.executable).with_name("workbench")
    done = subprocess.run([script, "tasks", "--json"], capture_output=True, text=True, check=True, timeout=120)
    assert set(json.loads(done.stdout)) == set(TASKS)
    wrong = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "check", "/no/where"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and wrong.stderr.startswith("workbench: ")


def test_the_table_of_papers_is_what_the_registries_say(capsys):
    assert cli.main(["papers"]) == 0
    table = capsys.readouterr().out
    assert (Path(__file__).parent.parent / "docs" / "papers.md").read_text() == table
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert rows == [name for name, thing in (*TASKS.items(), *ANALYSES.items()) if thing.paper]


@pytest.fixture
def written(gpt2: str, tmp_path: Path) -> Callable[..., Path]:
    """`written(steps=...)`: the path of a YAML file that asks for a small fine-tune."""

    def write(**changes: object) -> Path:
        lines = {"model": gpt2, "tasks": "[ioi, subject_verb]", "steps": 6, "batch": 6, "examples": 24, "held": 8}
        lines |= {"checkpoint": 3, "device": "cpu", "options": "{r: 2}", **changes}
        path = tmp_path / "spec.yaml"
        path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
        return path

    return write


def apart(spec: Spec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The log of the same fine-tune in a home of its own, without times."""
    with monkeypatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(folder))
        return untimed(tune(spec))


def untimed(run: Run) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.records]


def test_tune_does_what_the_function_does_with_settings_changed(written, tmp_path, monkeypatch, capsys):
    path = written()
    changed = ["--set", "steps=4", "--set", "options.r=3", "--set", "tasks=[ioi, {name: greater_than, weight: 2}]"]
    assert cli.main(["tune", str(path), *changed, "--json"]) == 0
    tasks = ["ioi", {"name": "greater_than", "weight": 2}]
    spec = read_spec(path, {"steps": 4, "options": {"r": 3}, "tasks": tasks})
    run, said = Run(spec.name), json.loads(capsys.readouterr().out)
    assert untimed(run) == apart(spec, tmp_path / "apart", monkeypatch)
    assert said == {
        **{"run": run.reference, "folder": str(run.folder), "state": "finished", "done": 4, "of": 4, "error": ""},
        "accuracy": accuracy(run.records),
    }
    right = [task["right"] / task["n"] for task in run.records[-1]["tasks"]]
    assert said["accuracy"] == sum(right) / 2
    assert cli.main(["tune", str(path), *changed]) == 0
    assert f"workbench run head_patching --model {run.reference} --task ioi" in capsys.readouterr().out


def test_runs_lists_them_with_state_steps_and_accuracy(written, capsys):
    assert cli.main(["runs"]) == 0 and capsys.readouterr().out == "There are no runs yet.\n"
    path = written(steps=2)
    assert cli.main(["tune", str(path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    (Run("broken").folder).mkdir(parents=True)
    (Run("broken").folder / "spec.json").write_text("{")
    assert cli.main(["runs", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    name, spec = made["run"].removeprefix("run/"), read_spec(path)
    assert rows[name] == {
        **{"name": name, "state": "finished", "done": 2, "of": 2, "error": "", "accuracy": made["accuracy"]},
        **{"tasks": spec.titles, "model": spec.model},
    }
    assert rows["broken"]["state"] == "damaged" and "is damaged" in rows["broken"]["error"]
    assert cli.main(["runs"]) == 0
    shown = f"run/{name}  finished, 2 of 2 steps, {made['accuracy']:.0%} of the held-out rows right"
    assert f"{shown}  [ioi, subject_verb from {spec.model}]" in capsys.readouterr().out.splitlines()


def test_an_estimate_starts_nothing(written, home, capsys):
    assert cli.main(["tune", str(written()), "--estimate", "--json"]) == 0
    said, found = json.loads(capsys.readouterr().out), estimate(written())
    same = ("memory", "parameters", "trained")
    assert {name: said[name] for name in same} == {name: getattr(found, name) for name in same}
    assert cli.main(["tune", str(written()), "--estimate"]) == 0
    assert f"{found.trained:,} of {found.parameters:,} parameters trained" in capsys.readouterr().out
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("stepz=4", "A tune has no setting 'stepz'; it has: model, tasks, method,"),
        ("steps=many", "steps is 'many'; it must be a whole number."),
        ("steps.x=4", "'steps' has no parts, so 'steps.x' cannot be set; set 'steps' itself."),
        ("options.rank=4", "Method 'lora' has no parameter 'rank'; it has: r, alpha, dropout, dora."),
        ("steps", "--set is 'steps'; write name=value, such as steps=400."),
        ("tasks=[ioi", "The value in --set 'tasks=[ioi' is not YAML; quote it, or write it as in the file."),
        ("batch=1", "batch is 1, but there are 2 tasks; give each at least one row."),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_way_out(change, expected, written, fails):
    assert expected in fails("tune", str(written()), "--set", change)


def test_a_spec_that_is_not_there_is_named(fails):
    assert "There is no file '/no/where.yaml'" in fails("tune", "/no/where.yaml")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_from_which_the_same_command_goes_on(
    sent, code, written, tmp_path, monkeypatch, capsys
):
    path = written(steps=150, checkpoint=60)
    spec = read_spec(path, {"seed": 1})
    run, command = Run(spec.name), ["tune", str(path), "--set=seed=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 120
        while not any(record["step"] > 2 for record in run.records):
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(sent)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    done = run.status["done"]
    assert process.returncode == code and run.status["state"] == "paused" and 2 < done < 150
    assert run.checkpoints[-1] == done and f"paused, {done} of 150 steps" in out
    assert (
        err.splitlines()[-1] == f"workbench: Stopped; a checkpoint is kept. To go on: workbench {shlex.join(command)}"
    )
    assert cli.main(command) == 0
    again = [record for record in untimed(run) if record["kind"] == "step" or record["step"] != done]
    assert again == apart(spec, tmp_path / "apart", monkeypatch)


def test_two_processes_of_accelerate_give_what_one_gives(written, saved, tmp_path, monkeypatch):
    path = written(model=saved("llama"), batch=10, learning_rate=0.01)  # without dropout, which each would draw anew
    script = str(Path(sys.executable).with_name("workbench"))
    command = [script, "tune", str(path), "--set", "processes=2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    said, run = json.loads(done.stdout), Run(read_spec(path, {"processes": 2}).name)
    assert said["state"] == "finished" and said["done"] == 6 and said["run"] == run.reference
    found, expected = untimed(run), apart(read_spec(path), tmp_path / "apart", monkeypatch)
    assert [(r["kind"], r["step"]) for r in found] == [(r["kind"], r["step"]) for r in expected]
    for one, other in zip(found, expected, strict=True):
        if one["kind"] == "step":
            assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
            assert one["norm"] == pytest.approx(other["norm"], rel=1e-3)
        else:
            losses = ([task["loss"] for task in record["tasks"]] for record in (one, other))
            assert next(losses) == pytest.approx(next(losses), rel=1e-4)
