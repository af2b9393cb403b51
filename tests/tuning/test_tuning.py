"""A fine-tune from its spec to checkpoints: stopped at any step it goes on to the same numbers, whatever watches it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import workbench as wb
from workbench import tuning
from workbench.models.reference import ModelError, checkpoints, find
from workbench.progress import reporting
from workbench.runs import Run, RunError, run_names, wilson
from workbench.spec import SpecError
from workbench.telemetry import Telemetry
from workbench.training import Training, TrainingError, make_batch
from workbench.tuning import estimate, make_training, tune


def stopped_after(steps):
    """Within it, work is told to stop after so many steps."""
    return reporting(lambda what, done, of: done < steps)


def weights(run):
    return load_file(run.folder / "resume.safetensors")


def same(a, b):
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left if n != "seconds")


def moved_to(run, folder):
    """The run's folder put elsewhere, so that its spec is tuned anew."""
    shutil.move(run.folder, folder)
    other = Run(run.name)
    other.folder = Path(folder)
    return other


def test_a_finished_run_can_be_loaded_at_every_step(small):
    spec = small()
    heard = []
    run = tune(spec, hear=heard.append)
    assert run.status == {"state": "finished", "done": 6, "of": 6, "error": ""}
    assert run.checkpoints == [0, 3, 6] == checkpoints(run.reference)
    assert run_names() == [run.name] and run.spec == spec
    assert [record["kind"] for record in heard].count("step") == 6
    start, base = (wb.load(ref, merge=True, device="cpu") for ref in (f"{run.reference}@0", spec.model))
    tokens = base.encode("Mary and John went to the store")[None]
    torch.testing.assert_close(start.logits(tokens), base.logits(tokens))  # an adapter that does nothing yet
    end = wb.load(run.reference, merge=True, device="cpu")
    assert not torch.allclose(end.logits(tokens), base.logits(tokens))
    assert end.checkpoint == 6 and end.hash != start.hash
    assert wb.run("head_patching", end, wb.task("ioi", n=8)).attrs["model"] == run.reference


def test_curves(small):
    run = tune(small())
    ds = run.curves()
    assert ds["loss"].dims == ("step", "task") and ds.sizes == {"step": 6, "task": 2, "checkpoint": 3}
    assert ds["loss"].values[-1].tolist() == run.records[-2]["losses"]
    assert (ds["accuracy_low"] <= ds["accuracy"]).all() and (ds["accuracy"] <= ds["accuracy_high"]).all()


def test_wilsons_interval():
    from scipy.stats import binomtest

    low, high = wilson(np.array([7.0, 0.0]), np.array([10.0, 8.0]))
    for index, (right, n) in enumerate(((7, 10), (0, 8))):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        assert low[index] == pytest.approx(expected.low, abs=1e-9) and high[index] == pytest.approx(expected.high)


def test_the_same_spec_is_not_tuned_twice(small):
    run = tune(small())
    stamp = (run.folder / "log.jsonl").stat().st_mtime_ns
    assert tune(small()).name == run.name and (run.folder / "log.jsonl").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(small, steps, tmp_path):
    spec = small(method="full")
    whole = moved_to(tune(spec), tmp_path / "whole")
    with stopped_after(steps):
        run = tune(spec)
    assert run.status["state"] == "paused" and run.status["done"] == steps == run.checkpoints[-1]
    run = tune(spec)
    assert run.status["state"] == "finished" and same(run, whole)
    losses = [[r["losses"] for r in each.records if r["kind"] == "step"] for each in (run, whole)]
    assert losses[0] == losses[1]


def test_a_run_that_was_killed_between_checkpoints_goes_on_from_the_last_one(small, tmp_path, monkeypatch):
    spec = small(method="full")
    whole = moved_to(tune(spec), tmp_path / "whole")
    real, calls = Training.step, []

    def step(self):
        calls.append(self.done)
        if len(calls) == 5:
            self.settled = False
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Training, "step", step)
    with pytest.raises(KeyboardInterrupt):
        tune(spec)
    run = Run(spec.name)
    assert run.status["state"] == "paused"  # nobody holds it
    assert run.checkpoints == [0, 3]
    run = tune(spec)
    assert calls[5:] == [3, 4, 5] and same(run, whole)
    assert [r["step"] for r in run.records if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_telemetry_changes_nothing_and_lies_on_the_same_steps(small, tmp_path):
    options = {"telemetry_every": 2, "telemetry_budget": 1e6, "telemetry_n": 8}
    plain = moved_to(tune(small("mixtral")), tmp_path / "plain")
    spec = small(
        "mixtral", telemetry={"sink_scores": {"length": 16, "sequences": 2}, "routing": {"length": 16}}, **options
    )
    run = tune(spec)
    assert same(run, plain)
    found = {(name, task): run.telemetry(name, task) for name in spec.telemetry for task in ("ioi", "subject_verb")}
    assert all(ds is not None and ds["step"].values.tolist() == [2, 4, 6] for ds in found.values())
    assert run.telemetry("head_patching", "ioi") is None
    end = wb.load(run.reference, merge=True, device="cpu")
    task = wb.task("ioi", n=8, corruption=spec.tasks[0]["corruption"])
    again = wb.run("routing", end, task, length=16)
    np.testing.assert_allclose(found["routing", "ioi"]["load"].sel(step=6), again["load"], atol=1e-6)


def test_telemetry_keeps_to_its_budget(small, monkeypatch):
    """Each measurement takes as long as a step, and a quarter of the training's time is allowed."""
    spec = small(steps=16, telemetry={"sink_scores": {}}, telemetry_every=1, telemetry_budget=0.25)
    telemetry, measured = Telemetry(spec, Run(spec.name)), []

    def measure(analysis, training):
        measured.append(training.done)
        telemetry.spent += 0.5
        telemetry.last[analysis] = 0.5

    monkeypatch.setattr(telemetry, "_measure", measure)
    for done in range(17):
        telemetry.look(SimpleNamespace(done=done, seconds=0.5 * done))
    assert measured == [1, 8, 12, 16] and telemetry.spent <= 0.25 * 8


def test_telemetry_says_what_it_took(small):
    params = {"sink_scores": {"length": 16, "sequences": 2}}
    run = tune(small(telemetry=params, telemetry_every=1, telemetry_budget=0.5))
    found = [record for record in run.records if record["kind"] == "telemetry"]
    trained = {record["step"]: record["seconds"] for record in run.records if record["kind"] == "step"}
    for number, record in enumerate(found, 1):
        spent = sum(each["seconds"] for each in found[:number])
        assert record["share"] == pytest.approx(spent / trained[record["step"]])
        assert number == 1 or spent - record["seconds"] <= 0.5 * trained[record["step"]]


def test_an_error_is_kept_with_the_run(small):
    spec = small(method="full", learning_rate=1e30, clip=0.0, warm_up=0, steps=20)
    with pytest.raises(TrainingError):
        tune(spec)
    status = Run(spec.name).status
    assert status["state"] == "failed" and "lower learning_rate" in status["error"]


def test_two_processes_cannot_work_on_one_run(small):
    spec = small()
    with Run(spec.name).hold(), pytest.raises(RunError, match="under way in another process"):
        tune(spec)
    assert not Run(spec.name).held


def test_runs_that_are_not_there():
    for name in ("none", "../x", ""):
        with pytest.raises(RunError, match=r"no run|not the name"):
            Run(name).spec  # noqa: B018
    with pytest.raises(ModelError, match="no run 'run/none'"):
        find("run/none")
    with pytest.raises(ModelError, match="no run"):
        find("run/../../etc")


def test_a_disk_that_is_full_is_said_and_leaves_the_run_to_be_resumed(small, monkeypatch):
    spec = small()
    with stopped_after(4):
        tune(spec)

    def full(self, step, save):
        raise RunError("The checkpoint could not be written (No space left on device); free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "keep", full)
        with pytest.raises(RunError, match="free some space"):
            tune(spec)
    assert tune(spec).status["state"] == "finished"


def test_curves_for_tensorboard(small):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tune(small(logger="tensorboard"))
    (file,) = (run.folder / "logs").rglob("events*")
    events = EventAccumulator(str(file)).Reload()
    expected = run.curves()["loss"].sel(task="ioi").values
    np.testing.assert_allclose([e.value for e in events.Scalars("loss/ioi")], expected, rtol=1e-6)
    with pytest.raises(SpecError, match="trackio is not installed"):
        tune(small(logger="trackio", steps=7))


def test_what_it_will_take(small, monkeypatch):
    spec = small(method="full")
    found = estimate(spec)
    module, _, _ = tuning.make_training(spec).module, 0, 0
    size = sum(value.numel() for value in module.parameters())
    assert found.parameters == found.trained == size and found.fits
    assert found.memory > 4 * size * 4  # weights, gradients and two moments, float32
    assert 0 < found.seconds < 600
    more = estimate(spec.changed(batch=24))
    assert more.memory > found.memory
    monkeypatch.setattr(tuning, "_free", lambda device: int(found.memory))
    with pytest.raises(SpecError, match=r"set batch to \d+ or less"):
        estimate(spec.changed(batch=64))
    monkeypatch.setattr(tuning, "_free", lambda device: 1000)
    with pytest.raises(SpecError, match="use the method lora"):
        estimate(spec)


def test_the_batch_it_advises_fits(small, monkeypatch):
    spec = small(method="full", batch=64)
    monkeypatch.setattr(tuning, "_free", lambda device: int(estimate_of(spec) * 0.9))
    with pytest.raises(SpecError, match="set batch") as caught:
        estimate(spec)
    batch = int(str(caught.value).split("set batch to ")[1].split()[0])
    assert 2 <= batch < 64 and estimate(spec.changed(batch=batch)).fits


def estimate_of(spec):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "_free", lambda device: 2**60)
        return estimate(spec).memory


@pytest.mark.parametrize("method", ["separate_lora", "poly"])
def test_a_checkpoint_can_be_traced_as_each_of_its_tasks_uses_it(small, method):
    spec = small(method=method, options={"r": 2}, learning_rate=3e-2)
    run, training = tune(spec), make_training(spec)
    about = json.loads((run.folder / "checkpoints" / "step_00006" / "workbench.json").read_text())
    assert about == {"tasks": ["ioi", "subject_verb"], "per_task": True, "run": run.name, "step": 6}
    training.restore(run.state)
    training.module.eval()
    models = [wb.load(f"{run.reference}:{name}", device="cpu") for name in spec.titles]
    assert models[0].hash != models[1].hash or method == "poly"
    for task, model in enumerate(models):
        row = training.pools[task].held[0]
        batch = make_batch([row], [1], [task], training.device)
        if training.attached.select is not None:
            training.attached.select(task)
        expected = training.scores(batch)[0].detach()
        torch.testing.assert_close(model.logits(row[None, :-1])[0, -1], expected, atol=2e-4, rtol=1e-4)
    task = wb.task("ioi", n=8)
    found = [wb.run("head_patching", model, task)["effect"].values for model in models]
    assert not np.allclose(*found)
    assert wb.load(f"{run.reference}:ioi@3", device="cpu").checkpoint == 3
    with pytest.raises(ModelError, match="no part of a task 'co'; it has: ioi, subject_verb"):
        wb.load(f"{run.reference}:co")


def test_an_adapter_for_each_task_must_be_named(small):
    run = tune(small(method="separate_lora"))
    with pytest.raises(ModelError, match=f"load one, like '{run.reference}:ioi'"):
        wb.load(run.reference)
    shared = tune(small())
    with pytest.raises(ModelError, match="its tasks share all of it"):
        wb.load(f"{shared.reference}:ioi")


def test_prompt_tuning_is_trained_and_evaluated_but_not_traced(small):
    run = tune(small(method="prompt_tuning", telemetry={"sink_scores": {"length": 16}}, telemetry_every=1))
    assert run.status["state"] == "finished"
    (note,) = (record for record in run.records if record["kind"] == "note")
    assert "sink_scores is not measured" in note["text"]
    with pytest.raises(ModelError, match="prompt"):
        wb.load(run.reference)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tuned_model_can_be_tuned_further(small, family):
    first = tune(small(family))
    second = tune(small(family, model=first.reference, seed=1))
    before, after = (wb.load(ref, device="cpu") for ref in (first.reference, f"{second.reference}@0"))
    tokens = before.encode("Mary and John went to the store")[None]
    torch.testing.assert_close(after.logits(tokens), before.logits(tokens), atol=1e-4, rtol=1e-4)
    assert before.card.colour == "green" and not after.card.problems()


@pytest.mark.parametrize("method", ["separate_lora", "poly"])
def test_telemetry_of_parts_that_tasks_have_of_their_own(small, method):
    options = {"telemetry": {"head_patching": {}}, "telemetry_every": 3, "telemetry_budget": 1e6, "telemetry_n": 8}
    run = tune(small(method=method, options={"r": 2}, learning_rate=3e-2, **options))
    measured = run.telemetry("head_patching", "subject_verb")
    again = wb.run(
        "head_patching", wb.load(f"{run.reference}:subject_verb", device="cpu"), wb.task("subject_verb", n=8)
    )
    np.testing.assert_allclose(measured["effect"].sel(step=6), again["effect"], atol=1e-4)
