"""Edited routing against experts added up by hand, the shown code run, and what is refused."""

import numpy as np
import pytest
import torch
from plain_experts import EXPERTS, STRENGTH, Plain, logit_diff, loss, metric, planted, weight_of_planted

from workbench.analyses import AnalysisError, route_surgery
from workbench.analyses._route_edits import Edit, Surgery, parse_edits
from workbench.analyses.route_surgery import _others
from workbench.models.reference import ModelError
from workbench.registry import WorkbenchError
from workbench.tasks import make_task

TASK = make_task("subject_verb", n=10)
EDITS = "L0E1=mute; L0E2=0.25@1,END; L1E3=force@subject; L1E0=mute@1,END; L1E1=0@1"
every_family = pytest.mark.parametrize("family", ["mixtral", "olmoe"])


@pytest.fixture(scope="module")
def model_and_task(fresh, words):
    return planted(fresh, words)


def prompts_of(model, task=TASK):
    return task.encode(model.tokenizer, bos=model.bos)


def at(length, *places):
    found = torch.zeros(1, length, dtype=bool)
    found[:, list(places)] = True
    return found


def edits_by_hand(plain, marks, length):
    """`EDITS` as functions of router logits and dense weights."""

    def first(logits, weights):
        weights = plain.closed(1)(logits, weights)
        weights[..., 2] *= torch.where(at(length, 1, marks["END"]), 0.25, 1.0)
        return weights

    def second(logits, weights):
        weights = plain.closed(0, at(length, 1, marks["END"]))(logits, weights)
        weights[..., 1] *= torch.where(at(length, 1), 0.0, 1.0)
        alone = weights.sum(-1, keepdim=True) * (torch.arange(EXPERTS) == 3)
        return alone.where(at(length, marks["subject"])[..., None], weights)

    return {0: first, 1: second}


def measured(plain, ids, answers, wrongs, gate):
    logits, seen = plain.run(ids[None], gate=gate)
    likely = logits[0, -1].double().softmax(-1).numpy()
    values = metric(logits, [answers], [wrongs])[0], likely[answers].sum(), loss(logits, ids[None])[0]
    return np.array(values), likely, seen


@every_family
@pytest.mark.parametrize("batch", [3, 64])
def test_edits_equal_experts_added_up_by_hand(family, batch, traced, saved):
    model, plain = traced(family), Plain(saved(family), family)
    ds = route_surgery(model, TASK, edits=EDITS, prompt=4, batch=batch)
    prompts = prompts_of(model)
    assert len({marks["subject"] for marks in prompts.positions} | set(prompts.lengths)) > 1
    both, weights = np.empty((2, 3, len(prompts))), []
    for row, ids in enumerate(prompts.clean):
        given = ids, prompts.answers[row], prompts.wrongs[row]
        gate = edits_by_hand(plain, prompts.positions[row], len(ids))
        for side, change in enumerate(({}, gate)):
            both[side, :, row], likely, seen = measured(plain, *given, change)
            if side and row == 4:
                top = np.argsort(-likely)[:5]
                assert ds["top_token"].values[1].tolist() == model.tokens(top)
                np.testing.assert_allclose(ds["top_probability"].values[1], likely[top], atol=1e-5)
        weights.append(seen[1][1][0, prompts.positions[row]["subject"], 3])
    for index, name in enumerate(("metric", "probability", "loss")):
        np.testing.assert_allclose(ds[f"{name}_prompt"], both[:, index], atol=3e-5, rtol=1e-4)
        np.testing.assert_allclose(ds[name], both[:, index].mean(-1), atol=3e-5, rtol=1e-4)
        np.testing.assert_allclose(ds[f"{name}_change"], np.diff(both[:, index], axis=0).mean(), atol=5e-5, rtol=1e-3)
    read = ds["weight"].sel(measured="after")
    np.testing.assert_allclose(read.sel(component="L1E3=force@subject"), np.mean(weights), rtol=1e-4)
    assert not read.sel(component=["L0E1=mute", "L1E0=mute@1,END", "L1E1=0@1"]).any()
    factors = ds["weight"].sel(component="L0E2=0.25@1,END").values
    assert (factors > 0).all()


@every_family
@pytest.mark.parametrize("edits", [EDITS, "L1E2=force", "L0E3=0.5", "L1E0=mute@END"])
def test_the_code_that_is_shown_gives_the_numbers(family, edits, traced):
    ds = route_surgery(traced(family), TASK, edits=edits, prompt=2, steps=1)
    run = {}
    exec(ds.attrs["code"], run)
    assert len(run["routed"]) == 2
    assert float(run["loss"]) == pytest.approx(ds["loss_prompt"].values[1, 2], rel=1e-5)
    best = run["probabilities"][0].topk(5)
    np.testing.assert_allclose(best.values, ds["top_probability"].values[1], atol=1e-6)
    assert traced(family).tokens(best.indices.numpy()) == ds["top_token"].values[1].tolist()


def test_a_continuation_is_the_likeliest_token_again_and_again(traced, saved):
    model, plain = traced("mixtral"), Plain(saved("mixtral"), "mixtral")
    ds = route_surgery(model, TASK, edits="L1E2=force; L0E1=mute@END", prompt=1, steps=4)
    prompts = prompts_of(model)
    ids, end = prompts.clean[1], len(prompts.clean[1]) - 1
    for side in ("before", "after"):
        found = ids
        for _ in range(4):
            alone = {1: lambda logits, weights: torch.eye(EXPERTS)[2].expand_as(weights)}
            gate = {0: plain.closed(1, at(len(found), end)), **alone} if side == "after" else {}
            found = np.append(found, plain.run(found[None], gate=gate)[0][0, -1].argmax())
        assert ds.attrs[f"continuation_{side}"] == model.tokenizer.decode(found[len(ids) :])
    assert ds.attrs["continuation_before"] != ds.attrs["continuation_after"]
    assert ds.attrs["shown"] == prompts.texts[1]


def test_the_planted_expert_muted_and_forced(model_and_task):
    model, task = model_and_task
    muted = route_surgery(model, task, edits="L0E0=mute")
    before = logit_diff(weight_of_planted() * STRENGTH)
    np.testing.assert_allclose(muted["metric"], [before, 0], atol=1e-4)
    assert (muted["metric_change_random"] > -0.01).all() and muted["metric_change_p"] == pytest.approx(1 / 21)
    forced = route_surgery(model, task, edits="L0E0=force@END")
    np.testing.assert_allclose(forced["metric"], [before, logit_diff(STRENGTH)], atol=1e-4)
    np.testing.assert_allclose(forced["weight"], [[weight_of_planted(), 1]], atol=1e-5)
    np.testing.assert_allclose(forced["metric_change_random"], -before, atol=1e-4)  # others write nothing there
    halved = route_surgery(model, task, edits="L0E0=0.5")
    np.testing.assert_allclose(halved["metric"].values[1], logit_diff(weight_of_planted() * STRENGTH / 2), atol=1e-4)


@pytest.mark.parametrize("edits", ["L0E1=mute", "L0E1=0.5; L1E0=mute", "L0E0=0@0"])
def test_an_expert_that_is_not_used_changes_nothing_to_the_last_bit(edits, model_and_task):
    model, task = model_and_task
    ds = route_surgery(model, task, edits=edits)
    for name in ("metric", "probability", "loss"):
        pair = ds[f"{name}_prompt"].values
        assert (pair[0] == pair[1]).all() and ds[f"{name}_change"] == 0
    assert (ds["top_probability"].values[0] == ds["top_probability"].values[1]).all()
    assert not ds["weight"].any()


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ("", "No edits were given; write it like L2E5=mute, L1E3=force@S2 or L0E1=0.5"),
        (" ; ", "No edits"),
        ("L0E1", "'L0E1' is no edit of an expert; write it like"),
        ("L0E1=louder", "no edit"),
        ("L0E1=-1", "no edit"),
        ("L0E1=nan", "no edit"),
        ("L0E1=mute@", "no edit"),
        ("L0H1=mute", "'L0H1' is not the name of an expert; write it like L2E5"),
        ("L7E1=mute", "'L7E1=mute': layer 7 does not route; these do: 0, 1"),
        ("L0E4=mute", "there is no L0E4; each layer has 4 experts"),
        ("L0E1=mute@S9", "no position 'S9'; they have: all, subject, END, attractor, and token indices"),
        ("L0E1=mute@99", "no token 99 in every prompt; the shortest has"),
        ("L0E1=mute; L0E1=0.5@END", "are edits of one expert, and meet on the same token"),
        ("L0E1=force; L0E2=0.5@END", "include a force, which takes all the weight"),
        ("L0E0=mute;L0E1=mute;L0E2=mute;L0E3=mute@END", "mute every expert of layer 0 for a token"),
    ],
)
def test_edits_that_cannot_be_done_are_refused(edits, message, traced):
    with pytest.raises(WorkbenchError, match=message):
        route_surgery(traced("mixtral"), TASK, edits=edits)


def test_edits_are_understood_in_the_usual_forms(traced):
    model = traced("mixtral")
    found = parse_edits("l0e1 = mute\n1.3=force@ subject , END ;0.E0=.5@all,END", model, prompts_of(model))
    assert [str(edit) for edit in found] == ["L0E1=mute", "L1E3=force@subject,END", "L0E0=0.5"]
    apart = parse_edits("L0E1=force@END; L0E1=mute@0; L1E1=mute", model, prompts_of(model))
    assert len(apart) == 3
    assert apart[0].places({"END": 3}, 5).tolist() == [False, False, False, True, False]


def test_three_of_four_experts_muted_leave_all_the_weight_to_the_fourth(traced):
    ds = route_surgery(traced("mixtral"), TASK, edits="L0E0=mute; L0E1=mute; L0E2=mute; L1E3=0.5")
    assert not ds["weight"].values[:3, 1].any()
    forced = route_surgery(traced("mixtral"), TASK, edits="L0E3=force; L1E3=0.5")
    np.testing.assert_allclose(ds["metric_prompt"], forced["metric_prompt"], atol=1e-4)


def test_other_prompts_counts_and_models_are_refused(traced):
    for options, message in (
        ({"prompt": 10}, "no prompt 10; the task has 0 to 9"),
        ({"prompt": -1}, "no prompt -1"),
        ({"steps": 0}, "steps is 0"),
        ({"draws": 3}, "draws is 3; a 95 % band needs 20"),
    ):
        with pytest.raises(AnalysisError, match=message):
            route_surgery(traced("mixtral"), TASK, edits="L0E1=mute", **options)
    with pytest.raises(ModelError, match="no experts"):
        route_surgery(traced("gpt2"), TASK, edits="L0E1=mute")


@pytest.mark.parametrize("what", ["mute", "force", "weigh"])
def test_an_edit_that_takes_no_effect_is_not_believed(what, traced, monkeypatch):
    """A family that goes its own way: the edits' functions are run, but what they give is not taken."""
    plain = Surgery.options.fget

    def deaf(self):
        def rescore(edit):
            return lambda logits: (edit(logits), logits)[1]

        def reroute(edit):
            return lambda chosen, weights: (edit(chosen, weights), (chosen, weights))[1]

        found = plain(self)
        return {
            "rescore": {layer: rescore(edit) for layer, edit in found["rescore"].items()},
            "reroute": {layer: reroute(edit) for layer, edit in found["reroute"].items()},
        }

    monkeypatch.setattr(Surgery, "options", property(deaf))
    text = {"mute": "mute", "force": "force", "weigh": "0.5"}[what]
    with pytest.raises(AnalysisError, match="did not take effect in this family"):
        route_surgery(traced("mixtral"), TASK, edits=f"L0E1={text}")


def test_controls_are_other_experts_that_have_something_to_lose():
    rng, weight = np.random.default_rng(0), np.array([[0.5, 0.0, 0.2, 0.0, 0.3, 0.0]] * 2)
    mute = (Edit(0, 0, "mute", 0.0), Edit(0, 4, "mute", 0.0))
    for _ in range(50):
        first, second = (edit.expert for edit in _others(mute, weight, rng))
        assert {first, second} <= {1, 2, 3, 5} and 2 in (first, second) and first != second
    force = {_others((Edit(1, 0, "force", 1.0),), weight[:1], rng)[0].expert for _ in range(99)}
    assert force == {1, 2, 3, 4, 5}
    many = tuple(Edit(0, expert, "weigh", 0.5) for expert in range(4))
    for _ in range(50):
        found = [edit.expert for edit in _others(many, np.eye(4), rng)]
        assert sorted(found) == [0, 1, 2, 3] and all(a != b for a, b in enumerate(found))


def test_a_control_is_the_same_edit_of_the_expert_it_names(traced):
    model = traced("olmoe")
    ds = route_surgery(model, TASK, edits="L0E1=0.5@END; L1E2=force@subject")
    for draw in (0, 7):
        again = route_surgery(model, TASK, edits=str(ds["control"].values[draw]))
        for name in ("metric", "probability", "loss"):
            assert float(again[f"{name}_change"]) == pytest.approx(ds[f"{name}_change_random"].values[draw], abs=1e-9)
