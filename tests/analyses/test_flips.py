"""Flipped answers, counted again one by one; tests and intervals against SciPy."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM

from workbench.analyses import ANALYSES, AnalysisError, flips
from workbench.analyses.flips import KINDS, RATES, mcnemar, wilson
from workbench.models.load import load, wrap
from workbench.models.reference import ModelError
from workbench.progress import Cancelled, reporting
from workbench.tasks import make_task
from workbench.tuning import tune

TASK = make_task("subject_verb", n=24)


@pytest.fixture
def pair(saved, tmp_path):
    """A model, another with other weights on disk, and its reference."""
    model = load(saved("llama"), device="cpu")
    other = copy.deepcopy(model.plain)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(torch.randn_like(value) * value.std() * 0.3)
    folder = tmp_path / "other"
    other.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return model, load(folder, device="cpu"), str(folder)


def answers(model, choices: bool) -> list[int]:
    """What the model says to each prompt, one at a time."""
    prompts, said = TASK.encode(model.tokenizer, bos=model.bos), []
    for tokens, right, wrong in zip(prompts.clean, prompts.answers, prompts.wrongs, strict=True):
        logits = model.logits(tokens[None])[0, -1]
        known = [*right.tolist(), *wrong.tolist()] if choices else range(len(logits))
        said.append(max(known, key=lambda token, logits=logits: float(logits[token])))
    return said


@pytest.mark.parametrize("choices", [True, False])
def test_answers_are_counted_as_by_hand(pair, choices):
    model, other, reference = pair
    ds = flips(model, TASK, after=reference, answers="choices" if choices else "vocabulary", batch=5)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    before, after = (answers(each, choices) for each in (model, other))
    assert ds["answer"].values.tolist() == [before, after]
    right = [[said in known for said, known in zip(side, prompts.answers, strict=True)] for side in (before, after)]
    assert ds["right"].values.tolist() == [[int(hit) for hit in side] for side in right]
    names = {(1, 1): KINDS[0], (1, 0): KINDS[1], (0, 1): KINDS[2], (0, 0): KINDS[3]}
    kinds = [names[int(a), int(b)] for a, b in zip(*right, strict=True)]
    assert [KINDS[kind] for kind in ds["kind"].values] == kinds
    assert ds["count"].values.tolist() == [kinds.count(kind) for kind in KINDS]
    if choices:
        assert len(set(kinds)) > 2, "both kinds of flips are there to be counted"
    changed = sum(not now and a != b for now, a, b in zip(right[1], before, after, strict=True))
    by_name = dict(zip(ds["method"].values.tolist(), ds["rate"].values.tolist(), strict=True))
    expected = [kinds.count(KINDS[1]) / 24, kinds.count(KINDS[2]) / 24, changed / 24]
    assert by_name == dict(zip(RATES, expected, strict=True))
    assert ds["accuracy"].values.tolist() == [np.mean(side) for side in right]
    assert ds.attrs["mcnemar"] == mcnemar(kinds.count(KINDS[1]), kinds.count(KINDS[2]))
    assert ds.attrs["accuracy_change"] == pytest.approx(np.mean(right[1]) - np.mean(right[0]))


def test_the_metric_and_the_texts_are_those_of_each_prompt(pair):
    model, other, reference = pair
    ds = flips(model, TASK, after=reference, batch=5)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    for side, each in enumerate((model, other)):
        for row in (0, 7, 23):
            logits = each.logits(prompts.clean[row][None])[0, -1].double()
            expected = logits[prompts.answers[row]].mean() - logits[prompts.wrongs[row]].mean()
            assert ds["metric"].values[side, row] == pytest.approx(float(expected), abs=1e-4)
    np.testing.assert_allclose(ds["change"], ds["metric"][1] - ds["metric"][0])
    assert ds["text"].values.tolist() == prompts.texts
    assert ds["after_text"].values.tolist() == [model.tokenizer.decode([said]) for said in ds["answer"].values[1]]
    assert ds["answer_text"].values.tolist() == [model.tokenizer.decode([a[0]]) for a in prompts.answers]
    low, high = ds.attrs["metric_change_low"], ds.attrs["metric_change_high"]
    error = ds["change"].values.std() / 24**0.5
    assert low < ds.attrs["metric_change"] < high and high - low == pytest.approx(3.92 * error, rel=0.1)


def test_a_model_does_not_flip_against_itself(traced):
    ds = flips(traced("gpt2"), TASK)  # which is what nothing named means here
    assert ds.attrs["flipped"] == 0 and ds.attrs["mcnemar"] == 1
    assert not ds["change"].values.any() and not ds["rate"].values.any()
    assert (ds.attrs["accuracy_change_low"], ds.attrs["accuracy_change_high"]) == (0, 0)


def test_the_steps_of_a_zoo_model_are_set_against_its_end():
    from workbench.models.reference import checkpoints

    step = checkpoints("zoo/tasks")[0]
    ds = flips(load(f"zoo/tasks@{step}", device="cpu"), make_task("ioi", n=16))
    assert ds.attrs["after"] == "zoo/tasks" and ds["accuracy"].values.tolist()[1] > 0.9
    assert ds.attrs["mcnemar"] == pytest.approx(2 * 0.5 ** ds.attrs["flipped"])


def test_an_adapter_on_fused_weights_is_merged(saved):
    base = str(saved("gpt2"))
    given = {"model": base, "tasks": ["subject_verb", "ioi"], "steps": 4, "batch": 4, "held": 8, "examples": 16}
    run = tune({**given, "learning_rate": 0.05, "warm_up": 0, "device": "cpu"})
    ds = flips(load(base, device="cpu"), TASK, after=run.reference)
    merged = load(run.reference, device="cpu", merge=True)
    assert ds["answer"].values[1].tolist() == answers(merged, False)
    assert ds["change"].values.any() and ds.attrs["after_hash"] == merged.hash


@pytest.mark.parametrize("negative", range(0, 12, 3))
@pytest.mark.parametrize("positive", [0, 1, 5, 40])
def test_the_test_is_that_of_scipy(negative, positive):
    count = negative + positive
    expected = binomtest(negative, count).pvalue if count else 1
    assert mcnemar(negative, positive) == pytest.approx(expected, rel=1e-9)


def test_shares_have_wilsons_interval():
    low, high = wilson(np.arange(11), 10)
    for count in range(11):
        found = binomtest(count, 10).proportion_ci(method="wilson")
        assert (low[count], high[count]) == pytest.approx((found.low, found.high), abs=1e-9)


def test_what_cannot_be_set_side_by_side_is_refused(traced, saved, bpe, fresh, tmp_path):
    model = traced("llama")
    with pytest.raises(AnalysisError, match="name the other checkpoint"):
        flips(wrap(fresh("llama"), model.tokenizer), TASK)
    with pytest.raises(ModelError, match="no run"):
        flips(model, TASK, after="run/nothing")
    folder = tmp_path / "bpe"
    config = fresh("llama").config
    config.vocab_size = len(bpe)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    bpe.save_pretrained(folder)
    with pytest.raises(AnalysisError, match="another vocabulary"):
        flips(model, TASK, after=str(folder))


def test_a_stop_gives_the_prompts_that_were_answered(traced):
    model, found = traced("llama"), []
    for last in range(1, 5):
        calls = []

        def report(what: str, done: int, total: int, calls=calls, last=last) -> bool:
            calls.append(done)
            return len(calls) < last

        with reporting(report):
            try:
                found.append(ANALYSES["flips"].run(model, TASK, batch=8).sizes["prompt"])
            except Cancelled:
                found.append(0)
    assert found[0] == 0 and found == sorted(found) and found[-1] >= 16
    assert json.loads(flips(model, TASK).attrs["params"])["batch"] == 64
