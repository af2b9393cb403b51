"""Fine-tunes set beside each other: pairs that read the same rows, and mixtures, against their own runs and by hand."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from scipy.stats import t as student
from transformers import AutoModelForCausalLM

from workbench import store
from workbench.experiments import ExperimentError, in_turn, paired
from workbench.mixtures import MEAN, NONE, contrasts, mixture_study, mixtures, study_cost, subsets
from workbench.models.load import load
from workbench.progress import Cancelled, reporting
from workbench.runs import Run
from workbench.spec import SpecError, read_spec
from workbench.tasks import make_task
from workbench.tuning import make_training, tune

TASKS = ["ioi", "subject_verb"]
ENDS = ("", "_low", "_high")


@pytest.fixture
def spec(saved: Callable[[str], Path]) -> Callable[..., Any]:
    """`spec(steps=...)`: a fine-tune of a few steps."""

    def make(**changes: Any) -> Any:
        given: dict[str, Any] = {"model": str(saved("llama")), "tasks": TASKS, "steps": 4, "batch": 4, "device": "cpu"}
        given |= {"examples": 24, "held": 12, "checkpoint": 4, "learning_rate": 3e-2, "warm_up": 0}
        return read_spec({**given, **changes})

    return make


def last(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.records if record["kind"] == "evaluation"][-1]["tasks"]


def test_an_evaluation_says_which_rows_were_right(spec):
    run = tune(spec())
    for record in (record for record in run.records if record["kind"] == "evaluation"):
        for task in record["tasks"]:
            assert len(task["each"]) == task["n"] and task["each"].count("1") == task["right"]
    training = make_training(spec())
    state = run.state
    assert state is not None
    training.adopt(state)
    for task, found in enumerate(last(run)):
        losses, right = training.held_out(task)
        assert "".join("01"[hit] for hit in right.astype(int)) == found["each"]
        assert losses.mean() == pytest.approx(found["loss"], rel=1e-6)


def test_a_fine_tune_beside_itself_differs_by_nothing(spec, tmp_path):
    ds = paired(spec(), spec(), seeds=(0, 1))
    for name in ("difference", "accuracy_change"):
        assert not any(ds[f"{name}{end}"].values.any() for end in ENDS)
    assert not any(ds[f"loss_change{end}"].values.any() for end in ENDS) and (ds["p"] == 1).all()
    assert ds["method"].values.tolist() == ["first", "second"]
    again = store.load(store.save(ds, tmp_path / "pair.nc"))
    assert again.attrs == ds.attrs and json.loads(ds.attrs["runs"])[0] == json.loads(ds.attrs["runs"])[1]


def test_differences_are_those_of_the_runs(spec):
    slow, fast = spec(learning_rate=1e-4), spec(learning_rate=0.1)
    asked = []

    def run(specs):
        asked.append([each.name for each in specs])
        return in_turn(specs)

    ds = paired(slow, fast, seeds=(3, 5, 9), run=run)
    assert ds["method"].values.tolist() == ["learning_rate 0.0001", "learning_rate 0.1"]
    assert len(asked) == 1 and len(set(asked[0])) == 6
    ends = [[last(Run(each.changed(seed=seed).name)) for seed in (3, 5, 9)] for each in (slow, fast)]
    for place in range(2):
        rows = [[np.array(list(seed[place]["each"])) == "1" for seed in side] for side in ends]
        by_seed = [float(b.mean() - a.mean()) for a, b in zip(*rows, strict=True)]
        np.testing.assert_allclose(ds["difference"].values[:, place], by_seed)
        for seed, (a, b) in enumerate(zip(*rows, strict=True)):
            worse, better = int((a & ~b).sum()), int((b & ~a).sum())
            expected = binomtest(worse, worse + better).pvalue if worse + better else 1
            assert ds["p"].values[seed, place] == pytest.approx(expected)
            low, high = (float(ds[f"difference{end}"].values[seed, place]) for end in ENDS[1:])
            draws = np.random.default_rng(0).choice(b.astype(float) - a, (4000, 12)).mean(1)
            np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=1.01 / 12)
        losses = [b[place]["loss"] - a[place]["loss"] for a, b in zip(*ends, strict=True)]
        for name, values in (("accuracy", by_seed), ("loss", losses)):
            assert float(ds[f"{name}_change"][place]) == pytest.approx(np.mean(values))
            error = np.std(values, ddof=1) / 3**0.5
            if error:
                low, high = student.interval(0.95, 2, loc=np.mean(values), scale=error)
                found = [float(ds[f"{name}_change{end}"][place]) for end in ENDS[1:]]
                np.testing.assert_allclose(found, (low, high), rtol=1e-6, atol=1e-9)
    assert ds["loss_change"].values.any() and ds.attrs["interval"] == "Student's t over 3 seeds"


def test_one_seed_has_the_interval_of_its_rows(spec):
    ds = paired(spec(), spec(method="full"), seeds=(4,))
    for end in ENDS:
        np.testing.assert_array_equal(ds[f"accuracy_change{end}"], ds[f"difference{end}"][0])
    assert "loss_change_low" not in ds and "one seed" in ds.attrs["interval"]
    assert ds["method"].values.tolist()[1] == "method full, options none"


def test_fine_tunes_that_read_other_rows_are_refused(spec, bpe, fresh, tmp_path):
    for name, value in (("batch", 6), ("held", 8), ("examples", 30), ("tasks", ["ioi"]), ("temperature", 2.0)):
        with pytest.raises(ExperimentError, match=f"differ in {name}, so they read other rows"):
            paired(spec(), spec(**{name: value}))
    with pytest.raises(ExperimentError, match=r"seeds are \[1, 1\]"):
        paired(spec(), spec(), seeds=(1, 1))
    with pytest.raises(ExperimentError, match=r"seeds are \[\]"):
        paired(spec(), spec(), seeds=())
    config = fresh("llama").config
    config.vocab_size = len(bpe)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bpe")
    bpe.save_pretrained(tmp_path / "bpe")
    with pytest.raises(ExperimentError, match="into other tokens"):
        paired(spec(), spec(model=str(tmp_path / "bpe")))


def test_a_stopped_experiment_goes_on(spec):
    steps = []

    def stop(what: str, done: int, of: int) -> bool:
        steps.append(what)
        return len(steps) < 8  # within the second run

    with reporting(stop), pytest.raises(Cancelled, match="stopped at step 2 of 4"):
        paired(spec(), spec(learning_rate=1e-3), seeds=(0,))
    assert [Run(spec(learning_rate=rate).name).status["state"] for rate in (3e-2, 1e-3)] == ["finished", "paused"]
    ds = paired(spec(), spec(learning_rate=1e-3), seeds=(0,))
    assert ds["accuracy"].values[0, 0].tolist() == [task["right"] / task["n"] for task in last(Run(spec().name))]


def test_a_run_without_its_rows_is_refused(spec):
    run = tune(spec())
    log = run.folder / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:
        for task in record.get("tasks", ()):
            task.pop("each")
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ExperimentError, match="earlier version"):
        paired(spec(), spec(), seeds=(0,))


def test_mixtures_are_all_subsets_and_read_each_task_alike(spec):
    three = ["ioi", "subject_verb", {"name": "ioi", "target": "wrong"}]
    found = mixtures(spec(batch=3), three)
    assert [len(each.tasks) for each in found] == [1, 1, 1, 2, 2, 2, 3]
    assert [each.batch for each in found] == [3, 3, 3, 6, 6, 6, 9]
    assert {each.batch for each in mixtures(spec(batch=6), three, rows="all")} == {6}
    trainings = {tuple(each.titles): make_training(each) for each in found}
    for titles, training in trainings.items():
        for place, title in enumerate(titles):
            alone = trainings[(title,)]
            for step in (0, 5):
                own, read = alone.batch(step, [0]), training.batch(step, [place])
                assert torch.equal(own.ids, read.ids) and torch.equal(own.targets, read.targets)
    with pytest.raises(ExperimentError, match="There are 1 tasks"):
        mixtures(spec(), ["ioi"])
    with pytest.raises(ExperimentError, match="There are 6 tasks"):
        six = [{"name": f"t{i}", "rows": [{"prompt": "the", "answer": " cat"}] * 20} for i in range(6)]
        mixtures(spec(), six)
    with pytest.raises(ExperimentError, match="parts for each task"):
        mixtures(spec(method="separate_lora"))
    with pytest.raises(SpecError, match="batch is 2"):
        mixtures(spec(batch=2), three, rows="all")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_effects_follow_their_definition(count):
    rng = np.random.default_rng(count)
    known = [(), *subsets(count)]
    assert len(known) == 2**count == len(set(known))
    y = dict(zip(known, rng.normal(size=len(known)), strict=True))
    found = {name: weights @ np.array(list(y.values())) for name, weights in contrasts(count).items()}
    np.testing.assert_allclose(found["gain"], [y[s] - y[()] for s in known])
    for i in range(count):
        without = [s for s in known if i not in s]
        expected = sum(y[tuple(sorted((*s, i)))] - y[s] for s in without) / len(without)
        assert found["main"][i] == pytest.approx(expected)
    for i, j in itertools.combinations(range(count), 2):
        gain = [y[s] - y[()] for s in ((i, j), (i,), (j,))]
        assert found["synergy"][i, j] == found["synergy"][j, i] == pytest.approx(gain[0] - gain[1] - gain[2])
    assert not np.diagonal(found["synergy"]).any()
    own = rng.normal(size=count)  # tasks that add up have no synergy, and are their own main effects
    total = np.array([sum(own[i] for i in s) for s in known])
    additive = {name: weights @ total for name, weights in contrasts(count).items()}
    np.testing.assert_allclose(additive["main"], own)
    np.testing.assert_allclose(additive["synergy"], 0, atol=1e-12)


@pytest.fixture
def two(spec):
    """A study of two tasks, taught so fast that something happens, and its spec."""
    given = spec(learning_rate=0.05, steps=6, batch=6)
    return given, mixture_study(given)


def test_a_study_measures_every_mixture_on_every_task(two, saved, tmp_path):
    given, ds = two
    names = [NONE, "ioi", "subject_verb", "ioi + subject_verb"]
    assert ds["method"].values.tolist() == names and ds["measured"].values.tolist() == [*TASKS, MEAN]
    references = [str(saved("llama")), *(f"run/{name}" for name in json.loads(ds.attrs["runs"])[0])]
    for mixture, reference in enumerate(references):
        model = load(reference, device="cpu", merge=True)
        for place, name in enumerate(TASKS):
            prompts = make_task(name, n=given.held, seed=given.seed).encode(model.tokenizer, bos=model.bos)
            right = [
                int(model.logits(tokens[None])[0, -1].argmax()) in allowed
                for tokens, allowed in zip(prompts.clean, prompts.answers, strict=True)
            ]
            assert ds["accuracy"].values[mixture, place] == pytest.approx(np.mean(right))
    assert ds["accuracy"].values[1:, :2].max() > 0, "something was learned"
    score = ds["accuracy"].values
    np.testing.assert_allclose(score[:, 2], score[:, :2].mean(1))
    for name in ("accuracy", "loss"):
        y = ds[name].values
        np.testing.assert_allclose(ds[f"{name}_gain"], y - y[0])
        np.testing.assert_allclose(ds[f"{name}_synergy"].values[0, 1], y[3] - y[1] - y[2] + y[0], atol=1e-12)
        np.testing.assert_allclose(ds[f"{name}_main"].values[0], (y[1] - y[0] + y[3] - y[2]) / 2, atol=1e-12)
        for kind in ("gain", "main", "synergy"):
            low, middle, high = (ds[f"{name}_{kind}{end}"].values for end in ("_low", "", "_high"))
            assert (low <= middle + 1e-12).all() and (middle <= high + 1e-12).all() and (low < high).any()
    own = last(Run(json.loads(ds.attrs["runs"])[0][0]))[0]
    assert score[1, 0] == own["right"] / own["n"] and float(ds["loss"][1, 0]) == pytest.approx(own["loss"], rel=1e-6)
    again = store.load(store.save(ds, tmp_path / "study.nc"))
    assert again.attrs == ds.attrs and ds["member"].values.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_intervals_of_one_seed_are_of_rows_drawn_again(two):
    given, ds = two
    whole = make_training(mixtures(given)[-1])
    rows = [whole.held_out(0)[0]]
    for name in json.loads(ds.attrs["runs"])[0]:
        state = Run(name).state
        assert state is not None
        whole.adopt(state)
        rows.append(whole.held_out(0)[0])
    own = rows[3] - rows[1] - rows[2] + rows[0]
    drawn = np.random.default_rng(1).choice(own, (20_000, len(own))).mean(1)
    low, high = (float(ds[f"loss_synergy{end}"].values[0, 1, 0]) for end in ENDS[1:])
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.1 * drawn.std())


def test_a_finished_study_costs_nothing_and_more_seeds_have_students_interval(two):
    given, ds = two
    cost = study_cost(given)
    assert (cost.runs, cost.left, cost.seconds, cost.memory) == (3, 0, 0, 0)
    more = study_cost(given, seeds=(0, 1))
    assert (more.runs, more.left) == (6, 3) and more.seconds > 0 and more.memory > 0
    both = mixture_study(given, seeds=(0, 1))
    other = mixture_study(given, seeds=(1,))
    for name in ("accuracy_gain", "loss_synergy"):
        values = np.stack([ds[name].values, other[name].values])
        np.testing.assert_allclose(both[name], values.mean(0), atol=1e-12)
        half = student(1).ppf(0.975) * values.std(0, ddof=1) / 2**0.5
        np.testing.assert_allclose(both[f"{name}_high"], values.mean(0) + half, atol=1e-6)
    assert both.attrs["interval"] == "Student's t over 2 seeds"
