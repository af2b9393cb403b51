"""Routers fitted again: planted experts that moved or are gone, other weights that changed, and the fit by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from plain_experts import EXPERTS, STRENGTH, K, Plain, logit_diff, planted, weight_of_planted
from torch.nn import functional as F

from workbench.analyses import AnalysisError, expert_drift
from workbench.analyses.expert_drift import APART, CHANGES, EPSILON, _prompts
from workbench.models.load import load
from workbench.models.reference import ModelError
from workbench.tasks import Task, make_task

TASK = make_task("ioi", n=8)
SMALL = {"steps": 5, "examples": 32, "batch": 8}
FIT = {"steps": 60, "batch": 12, "draws": 2, "rate": 0.03}
ENDS = ("", "_low", "_high")


def changes(ds, name="loss"):
    """The change by each name."""
    return dict(zip(ds["component"].values.tolist(), ds[f"{name}_change"].values, strict=True))


@pytest.fixture(scope="module")
def earlier(fresh, words):
    """A model in which only L0E0 knows the answer, and as many different prompts as are measured and fitted on."""
    model, task = planted(fresh, words)
    pair = task.records[0]
    (*first, clean), (*_, corrupted) = pair.clean.split(), pair.corrupted.split()
    other = sorted(w for w in words.get_vocab() if w.isalpha() and w not in (clean, corrupted))[:20]
    ends = {"answer": pair.answers[0], "wrong": pair.wrongs[0]}
    rows = [
        {name: " ".join([*first, word, end]) for name, end in (("clean", clean), ("corrupted", corrupted))} | ends
        for word in other
    ]
    return model, Task.from_records(rows)


@pytest.fixture(scope="module")
def later(earlier, words, tmp_path_factory):
    """`later(change)`: the directory of the earlier model once `change` was done to it."""

    def save(change):
        module, folder = copy.deepcopy(earlier[0].plain), tmp_path_factory.mktemp("later")
        with torch.no_grad():
            change(module)
        module.save_pretrained(folder)
        words.save_pretrained(folder)
        return str(folder)

    return save


def moved(module):
    """Every expert takes the next one's place; the routers do not know."""
    for block in module.model.layers:
        for value in block.mlp.experts.parameters():
            value.copy_(value.roll(1, 0))


def gone(module):
    generator = torch.Generator().manual_seed(1)
    for block in module.model.layers:
        for value in block.mlp.experts.parameters():
            value.copy_(0.02 * torch.randn(value.shape, generator=generator))


def loss_of(written, words):
    """Of the planted model's answer, whose logit is as much above the others' as the wrong one's is below."""
    half = logit_diff(written) / 2
    return -math.log(math.exp(half) / (math.exp(half) + math.exp(-half) + len(words) - 2))


def test_the_same_checkpoint_has_no_drift_and_its_best_routers_are_not_hurt(earlier, later, words):
    model, task = earlier
    ds = expert_drift(model, task, later=later(lambda module: None), **FIT)
    found, best = changes(ds), loss_of(weight_of_planted() * STRENGTH, words)
    assert found["in all"] == 0 == found["experts, both fitted"]
    assert abs(found["fitting alone"]) < 2e-3 and found["experts"] == found["fitting alone"] == -found["router"]
    np.testing.assert_allclose(ds["loss"], best, atol=2e-3)
    assert (ds["accuracy"] == 1).all()
    assert [ds.attrs[f"changed_{name}"] for name in ("router", "experts", "rest")] == [0, 0, 0]


def test_experts_that_moved_are_found_again_by_fitted_routers(earlier, later, words):
    model, task = earlier
    ds = expert_drift(model, task, later=later(moved), **FIT)
    found, best = changes(ds), loss_of(weight_of_planted() * STRENGTH, words)
    np.testing.assert_allclose(ds["loss"].values[0], best, atol=2e-3)
    own, fitted = ds["loss"].values[1]
    assert own == pytest.approx(math.log(len(words)), abs=0.01)  # nobody writes the answer
    assert fitted == pytest.approx(best, abs=0.05)
    assert found["router"] > 4 and abs(found["experts"]) < 0.05
    assert ds["accuracy"].values.tolist() == [[1, 1], [0, 1]]
    assert int(ds["chosen"][1]) > 0  # its own router is sure of the wrong expert, and cannot learn


def test_experts_that_are_gone_are_not_brought_back(earlier, later, words):
    model, task = earlier
    ds = expert_drift(model, task, later=later(gone), **FIT)
    found = changes(ds)
    assert found["in all"] > 4 and found["experts"] > 4 and abs(found["router"]) < 0.1
    assert float(ds["loss_change_low"].sel(component="experts")) > 4
    assert changes(ds, "metric")["experts"] == pytest.approx(-logit_diff(weight_of_planted() * STRENGTH), abs=0.3)


def test_other_weights_count_or_are_the_earlier_ones(earlier, later):
    model, task = earlier

    def both(module):
        moved(module)
        module.lm_head.weight.zero_()

    whole = expert_drift(model, task, later=later(both), **SMALL)
    ours = expert_drift(model, task, later=later(both), rest="earlier", **SMALL)
    only = expert_drift(model, task, later=later(moved), **SMALL)
    assert changes(whole)["experts"] > 4 and whole.attrs["changed_rest"] > 0 == ours.attrs["changed_rest"]
    np.testing.assert_array_equal(ours["loss"], only["loss"])
    np.testing.assert_array_equal(ours["entropy"], only["entropy"])
    experts = [block.mlp.experts for block in model.plain.model.layers]
    values = [value.detach() for each in experts for value in each.parameters()]
    moving = sum(float((value.roll(1, 0) - value).square().sum()) for value in values)
    expected = math.sqrt(moving / sum(float(value.square().sum()) for value in values))
    assert ours.attrs["changed_experts"] == pytest.approx(expected, rel=1e-5) and not ours.attrs["changed_router"]


def test_a_fit_is_adamw_on_the_answers_of_other_prompts(traced, fresh, words):
    """The own router's fit, with plain transformers; and the scores it starts and ends with."""
    model, module = traced("mixtral"), fresh("mixtral")
    ds = expert_drift(model, TASK, rate=0.02, **SMALL)
    prompts, lessons = _prompts(model, TASK, SMALL["examples"])
    rng = np.random.default_rng(TASK.seed)
    batches = [lessons.batch(rng, SMALL["batch"]) for _ in range(SMALL["steps"])]

    def losses(tokens, answers):
        logits = module(torch.from_numpy(np.stack(tokens))).logits[:, -1]
        return F.cross_entropy(logits, torch.tensor(np.stack(answers)[:, 0]), reduction="none")

    def measured():
        with torch.no_grad():
            return np.mean(
                [float(losses([ids], [right])) for ids, right in zip(prompts.clean, prompts.answers, strict=True)]
            )

    routers = [block.mlp.gate.weight for block in module.model.layers]
    optimizer, seen = torch.optim.AdamW(routers, lr=0.02, eps=EPSILON), [measured()]
    for step, (tokens, answers) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / len(batches)))
        optimizer.zero_grad()
        losses(tokens, answers).mean().backward()
        optimizer.step()
        seen.append(measured())
    np.testing.assert_allclose(ds["loss_start"].values[0, 0], seen, rtol=1e-4)
    assert ds["step"].values.tolist() == [0, 1, 2, 3, 4, 5]
    assert ds["loss"].values[0, 0] == pytest.approx(seen[0], rel=1e-5)
    assert ds["loss"].values[0, 1] == ds["loss_start"].values[0, int(ds["chosen"][0]), -1]
    np.testing.assert_array_equal(ds["chosen"], ds["loss_fitted"].values.argmin(1))


@pytest.mark.parametrize("name", ["ioi", "subject_verb", "greater_than"])
def test_routers_are_fitted_on_other_prompts_than_are_measured(name, traced):
    model, task = traced("mixtral"), make_task(name, n=32)
    prompts, lessons = _prompts(model, task, 64)
    measured = {tuple(tokens) for tokens in prompts.clean}
    assert len(lessons.rows) > 8 and not measured & {tuple(tokens) for tokens in lessons.rows}
    other = make_task(name, n=64, seed=task.seed + APART).encode(model.tokenizer, bos=model.bos)
    assert {tuple(tokens) for tokens in lessons.rows} == {tuple(tokens) for tokens in other.clean} - measured
    tokens, answers = lessons.batch(np.random.default_rng(0), 16)
    assert len(tokens) == len(answers) <= 16 and tokens.ndim == 2


def test_entropy_is_that_of_all_choices_after_bos(traced, saved):
    model = traced("mixtral")
    ds = expert_drift(model, TASK, **SMALL)
    plain, counts = Plain(saved("mixtral"), "mixtral"), np.zeros((2, EXPERTS))
    for ids in TASK.encode(model.tokenizer, bos=model.bos).clean:
        _, seen = plain.run(ids[None])
        counts += [(seen[layer][1][0, 1:] > 0).sum(0).numpy() for layer in (0, 1)]
    assert counts.sum() % K == 0
    shares = counts / counts.sum(1, keepdims=True)
    expected = -(shares * np.log(shares)).sum(1) / np.log(EXPERTS)
    np.testing.assert_allclose(ds["entropy"].values[:, 0], [expected, expected], rtol=1e-6)
    assert (ds["entropy_low"] <= ds["entropy"] + 1e-9).all() and (ds["entropy_high"] <= 1 + 1e-9).all()


def test_changes_are_differences_of_scores_and_add_up(traced, saved):
    ds = expert_drift(traced("mixtral"), TASK, later=str(saved("mixtral")), rate=0.1, **SMALL)
    for name in ("loss", "accuracy", "metric"):
        scores, found = ds[name].values, changes(ds, name)
        for label, (after, before) in CHANGES.items():
            assert found[label] == pytest.approx(scores[after] - scores[before], abs=1e-9)
        assert found["in all"] == pytest.approx(found["router"] + found["experts"], abs=1e-9)
        for at in (ds[name], ds[f"{name}_change"]):
            low, high = (ds[f"{at.name}{end}"] for end in ENDS[1:])
            assert ((low <= at + 1e-9) & (at <= high + 1e-9)).all()


def test_the_final_weights_are_meant_where_no_later_checkpoint_is_named():
    ds = expert_drift(load("zoo/tasks-moe@1000", device="cpu"), TASK, **SMALL)
    assert ds.attrs["later"] == "zoo/tasks-moe" and ds.attrs["changed_experts"] > 0.1


def test_experts_of_a_working_model_that_moved_are_found_again(tmp_path):
    model = load("zoo/tasks-moe", device="cpu")
    module = copy.deepcopy(model.plain)
    with torch.no_grad():
        moved(module)
    module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    ds = expert_drift(model, make_task("subject_verb", n=32), later=str(tmp_path), steps=100, batch=16)
    own, fitted = ds["loss"].values[1]
    assert own > 1 and fitted < 0.2 * own
    assert float(ds["loss_change_low"].sel(component="router")) > 0


def test_what_cannot_be_measured_is_refused(traced, saved, earlier, fresh, words, tmp_path):
    model = traced("mixtral")
    with pytest.raises(AnalysisError, match=r"differs .* in the shape of"):
        expert_drift(model, TASK, later=str(saved("olmoe")), **SMALL)
    with pytest.raises(AnalysisError, match="A live model has no reference"):
        expert_drift(*earlier, **SMALL)
    with pytest.raises(AnalysisError, match=r"in bfloat16; load it with dtype='float32'"):
        expert_drift(traced("mixtral", dtype="bfloat16"), TASK, **SMALL)
    with pytest.raises(AnalysisError, match="8 prompts to measure and 4 others"):
        expert_drift(model, TASK, examples=4)
    rows = [{"clean": f"the {a}", "corrupted": "the key", "answer": " the", "wrong": " to"} for a in ("book", "park")]
    with pytest.raises(AnalysisError, match="1 prompts to measure and 1 others"):
        expert_drift(model, Task.from_records(rows))
    with pytest.raises(ModelError, match="no experts"):
        expert_drift(traced("gpt2"), TASK, **SMALL)
