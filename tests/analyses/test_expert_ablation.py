"""Experts taken away one at a time, against experts added up by hand and a model in which one expert has the answer."""

import numpy as np
import pytest
import torch
from plain_experts import EXPERTS, STRENGTH, K, Plain, logit_diff, loss, metric, planted, weight_of_planted

from workbench.analyses import AnalysisError, expert_ablation
from workbench.analyses.expert_ablation import random_slots
from workbench.models.reference import ModelError
from workbench.models.routers import closing
from workbench.tasks import make_task

TASK = make_task("subject_verb", n=8)
TEXT = {"length": 9, "sequences": 3}


@pytest.fixture(scope="module")
def model_and_task(fresh, words):
    return planted(fresh, words)


def by_hand(plain, prompts, text, change):
    """Metric [prompt] and loss [sequence]; change: what `Plain.run` is given, for tokens of a shape."""
    values = np.empty(len(prompts))
    for row, ids in enumerate(prompts.clean):
        logits, _ = plain.run(ids[None], **change(1, len(ids)))
        values[row] = metric(logits, [prompts.answers[row]], [prompts.wrongs[row]])[0]
    return values, loss(plain.run(text, **change(*text.shape))[0], text)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
@pytest.mark.parametrize("mode", ["close", "zero"])
def test_every_expert_equals_experts_added_up_by_hand(family, mode, traced, saved):
    model, plain = traced(family), Plain(saved(family), family)
    ds = expert_ablation(model, TASK, mode=mode, batch=5, **TEXT)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    text = TASK.documents(model.tokenizer, length=9, count=3, bos=model.bos)
    clean, before = by_hand(plain, prompts, text, lambda *shape: {})
    corrupted = [
        metric(plain.run(ids[None])[0], [a], [w])[0]
        for ids, a, w in zip(prompts.corrupted, prompts.answers, prompts.wrongs, strict=True)
    ]
    used = [(plain.run(ids[None])[1][1][1] > 0).sum((0, 1)).numpy() for ids in prompts.clean]
    np.testing.assert_allclose(ds["load"].values[1], np.sum(used, 0) / prompts.lengths.sum())
    np.testing.assert_allclose(ds["load"].sum("expert"), K)
    silence = {e: lambda logits, weights, e=e: weights * (torch.arange(EXPERTS) != e) for e in range(EXPERTS)}
    for layer, expert in np.ndindex(2, EXPERTS):
        gate = {layer: plain.closed(expert) if mode == "close" else silence[expert]}
        without, after = by_hand(plain, prompts, text, lambda *shape, gate=gate: {"gate": gate})
        at, near = {"layer": layer, "expert": expert}, {"atol": 3e-5, "rtol": 1e-4}
        np.testing.assert_allclose(ds["metric_change"].sel(at), (without - clean).mean(), **near)
        lost = (clean - without).mean() / (clean - np.array(corrupted)).mean()
        np.testing.assert_allclose(ds["lost"].sel(at), lost, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(ds["loss_change"].sel(at), (after - before).mean(), **near)


def test_a_control_is_an_expert_taken_from_random_tokens(traced, saved):
    """The first control of L0E0 in running text, by hand."""
    model, plain = traced("mixtral"), Plain(saved("mixtral"), "mixtral")
    ds = expert_ablation(model, TASK, mode="zero", **TEXT)
    text = TASK.documents(model.tokenizer, length=9, count=3, bos=model.bos)
    index = len({len(ids) for ids in TASK.encode(model.tokenizer, bos=model.bos).clean})  # the part after the prompts'
    logits, seen = plain.run(text)
    order = seen[0][1].argsort(-1, descending=True)[..., :K]
    rng = np.random.default_rng([TASK.seed, 0, index])
    lost = torch.from_numpy(random_slots((order == 0).any(-1).sum(1).numpy(), (*text.shape, K), rng))
    assert lost.any()

    def silence(logits, weights):
        return weights.masked_fill(torch.zeros(weights.shape, dtype=bool).scatter(-1, order, lost), 0)

    changed = (loss(plain.run(text, gate={0: silence})[0], text) - loss(logits, text)).mean()
    np.testing.assert_allclose(ds["loss_change_random"].values[0, 0, 0], changed, atol=1e-5)


def test_as_many_random_tokens_of_each_row_lose_one_expert():
    count = np.array([0, 3, 5])
    drawn = [random_slots(count, (3, 5, 2), np.random.default_rng(seed)) for seed in range(300)]
    for lost in drawn:
        assert lost.any(-1).sum(1).tolist() == count.tolist() and lost.sum(-1).max() == 1
    shares = np.mean(drawn, 0)
    np.testing.assert_allclose(shares[1], 3 / 5 / 2, atol=0.12)
    np.testing.assert_allclose(shares[2], 1 / 2, atol=0.12)


@pytest.mark.parametrize("mode", ["close", "zero"])
def test_the_expert_with_the_answer_is_found_and_the_others_are_within_chance(mode, model_and_task):
    model, task = model_and_task
    ds = expert_ablation(model, task, mode=mode, length=8, sequences=2)
    whole, expected = np.zeros((2, EXPERTS)), logit_diff(weight_of_planted() * STRENGTH)
    whole[0, 0] = 1
    if mode == "close":  # another takes the place of L0E2, and less of the weight
        whole[0, 2] = 1 - logit_diff(weight_of_planted(beside=3) * STRENGTH) / expected
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(ds[f"lost{end}"], whole, atol=1e-5)
    np.testing.assert_allclose(ds["metric_change"], -expected * whole, atol=1e-4)
    assert ds["lost_p"].values[0, 0] == pytest.approx(1 / 21)
    assert 0 < ds["lost_null"].values[0, 0] < ds["lost_null_high"].values[0, 0] < 0.4
    assert (ds["lost"] <= ds["lost_null_high"] + 1e-5).values[whole < 1].all()
    last = 1 / task.encode(model.tokenizer, bos=model.bos).lengths.mean()
    np.testing.assert_allclose(ds["load"].values[0], [last, 0, 1, 1 - last], atol=1e-6)


def test_an_expert_that_is_not_used_changes_nothing_to_the_last_bit(model_and_task):
    model, task = model_and_task
    ds = expert_ablation(model, task, length=8, sequences=2)
    assert ds["load"].values[0, 1] == 0
    names = [f"{name}{end}" for name in ("lost", "loss_change") for end in ("", "_low", "_high", "_null", "_random")]
    for name in names:
        assert not ds[name].values[0, 1].any(), name
    tokens = model.tensor(task.encode(model.tokenizer, bos=model.bos).clean[0][None])
    assert torch.equal(model.routers.run(tokens, rescore={0: closing(1)}), model.routers.run(tokens))


def test_what_cannot_be_measured_is_refused(traced):
    with pytest.raises(AnalysisError, match="draws is 19; a 95 % band needs 20"):
        expert_ablation(traced("mixtral"), TASK, draws=19)
    with pytest.raises(AnalysisError, match="length is 2000"):
        expert_ablation(traced("mixtral"), TASK, length=2000)
    with pytest.raises(ModelError, match="no experts"):
        expert_ablation(traced("gpt2"), TASK, length=9)
