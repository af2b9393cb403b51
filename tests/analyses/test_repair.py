"""Edited attention rows against plain transformers with its own attention function changed, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoModelForCausalLM
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from workbench import store
from workbench.analyses import AnalysisError, repair
from workbench.analyses._patching import other_heads
from workbench.analyses.repair import _heads, _index, _rows
from workbench.models.load import load
from workbench.progress import Cancelled, reporting
from workbench.registry import WorkbenchError
from workbench.tasks import make_task

MODULES = {"gpt2": modeling_gpt2, "llama": modeling_llama}
OBJECTS = make_task("colored_objects", n=10)
SEVERAL = {"heads": "L0H1,L1H2 L1H3", "weights": "color_other_1=1,color_other_2=3"}


def attention(edits):
    """transformers' eager attention written out, with rows of some (layer, head) at the last position replaced."""

    def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **options):
        times = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(times, 1) for part in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        size = scores.shape[-1]
        pattern = scores.masked_fill(torch.ones(size, size, dtype=bool).triu(1), -torch.inf).softmax(-1)
        for (layer, head, position), row in edits.items():
            if layer == module.layer_idx:
                pattern[:, head, position] = torch.tensor(row, dtype=pattern.dtype)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    return attend


def plainly(family, folder, prompts, edits, monkeypatch):
    """Metric [prompt] and whether the likeliest token is an answer [prompt]; edits is a function of the prompt."""
    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    metric, right = [], []
    for row, ids in enumerate(prompts.clean):
        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(MODULES[family], "eager_attention_forward", attention(edits(row)))
            logits = module(torch.tensor(ids)[None]).logits[0, -1]
        metric.append((logits[prompts.answers[row]].mean() - logits[prompts.wrongs[row]].mean()).item())
        right.append(logits.argmax().item() in prompts.answers[row])
    return np.array(metric), np.array(right)


def row_of(length, weights):
    """An attention row with weights {token index: share}."""
    found = np.zeros(length)
    for index, share in weights:
        found[index] += share
    return found


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("batch", [3, 64])
def test_the_edit_equals_attention_written_out(family, batch, traced, saved, monkeypatch):
    model = traced(family)
    ds = repair(model, OBJECTS, **SEVERAL, draws=1, batch=batch)
    prompts = OBJECTS.encode(model.tokenizer, bos=model.bos)
    assert len({marks["color_other_1"] for marks in prompts.positions}) > 1

    def edits(row):
        marks, length = prompts.positions[row], prompts.lengths[row]
        there = row_of(length, [(marks["color_other_1"], 0.25), (marks["color_other_2"], 0.75)])
        return {(layer, head, length - 1): there for layer, head in ((0, 1), (1, 2), (1, 3))}

    before = plainly(family, saved(family), prompts, lambda row: {}, monkeypatch)
    after = plainly(family, saved(family), prompts, edits, monkeypatch)
    np.testing.assert_allclose(ds["metric"].values, [before[0].mean(), after[0].mean()], atol=1e-5)
    np.testing.assert_array_equal(ds["right"].values, [before[1], after[1]])
    np.testing.assert_array_equal(ds["accuracy"].values, [before[1].mean(), after[1].mean()])
    assert abs(before[0].mean() - after[0].mean()) > 0.01
    assert ds["component"].values.tolist() == ["unchanged", "edited"] and ds.attrs["edited"] == "L0H1,L1H2,L1H3"


@pytest.mark.parametrize("family", MODULES)
def test_the_edit_of_an_earlier_row(family, traced, saved, monkeypatch):
    """Numbers are token indices; the row of another position than the last."""
    task, model = make_task("subject_verb", n=8), traced(family)
    ds = repair(model, task, heads="L0H0,L0H3", weights="0=1;1=0.5", position="subject", draws=1)
    prompts = task.encode(model.tokenizer, bos=model.bos)

    def edits(row):
        there = row_of(prompts.lengths[row], [(0, 2 / 3), (1, 1 / 3)])
        return {(0, head, prompts.positions[row]["subject"]): there for head in (0, 3)}

    after = plainly(family, saved(family), prompts, edits, monkeypatch)
    np.testing.assert_allclose(ds["metric"].values[1], after[0].mean(), atol=1e-5)
    assert abs(np.diff(ds["metric"].values)) > 1e-3


def test_the_controls_are_other_heads_of_the_same_layers(traced):
    """One layer has a single other head, so every draw is that one."""
    model, three = traced("gpt2"), "L1H0,L1H1,L1H2"
    ds = repair(model, OBJECTS, heads="L1H1", weights="color_other_1=1", draws=12)
    alone = [
        repair(model, OBJECTS, heads=f"L1H{head}", weights="color_other_1=1", draws=1)["metric"].values[1]
        for head in range(4)
    ]
    drawn = ds["metric_random"].values
    nearest = np.abs(drawn[:, None] - np.array(alone)[None]).argmin(1)
    np.testing.assert_allclose(drawn, np.array(alone)[nearest], atol=1e-6)
    assert set(nearest) == {0, 2, 3} and ds["seed"].values.tolist() == list(range(12))
    assert repair(model, OBJECTS, heads=three, weights="color_other_1=1", draws=2).sizes["seed"] == 2


@pytest.mark.parametrize("chosen", [[(0, 1)], [(0, 0), (0, 1), (2, 3)], [(1, 2), (1, 3), (3, 0), (3, 1), (5, 4)]])
def test_as_many_random_heads_a_layer_and_none_that_was_chosen(chosen):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(100):
        drawn = other_heads(chosen, 5, rng)
        assert sorted(layer for layer, _ in drawn) == sorted(layer for layer, _ in chosen)
        assert len(set(drawn)) == len(drawn) and not set(drawn) & set(chosen)
        seen |= set(drawn)
    layers = {layer for layer, _ in chosen}
    assert seen == {(layer, head) for layer in layers for head in range(5)} - set(chosen)


def test_where_too_few_heads_are_left_all_may_be_drawn():
    rng, chosen = np.random.default_rng(0), [(0, 0), (0, 1), (0, 2)]
    draws = {tuple(sorted(other_heads(chosen, 4, rng))) for _ in range(200)}
    assert draws == {tuple((0, head) for head in some) for some in itertools.combinations(range(4), 3)}


def test_weights_are_shares_of_named_tokens(traced):
    prompts = OBJECTS.encode(traced("gpt2").tokenizer, bos=True)
    query = _index(prompts, "END")
    assert (query == prompts.lengths - 1).all() and (_index(prompts, "3") == 3).all()
    rows = _rows(prompts, " color_other_1 = 1 ,color_other_2=3; 2=.5,0=0.5 ", query)
    same = _rows(prompts, "color_other_1=2,color_other_1=0,color_other_2=6,0=1,2=1", query)
    for row, again, marks, length in zip(rows, same, prompts.positions, prompts.lengths, strict=True):
        parts = [(marks["color_other_1"], 0.2), (marks["color_other_2"], 0.6), (2, 0.1), (0, 0.1)]
        np.testing.assert_allclose(row, row_of(length, parts), atol=1e-15)
        np.testing.assert_allclose(again, row, atol=1e-15)
    both = _rows(prompts, "color_1=1,color_2=1,color_3=1,color_other_1=1,color_other_2=1", query)
    assert all(sorted(row[row > 0].round(9)) == [0.2, 0.4, 0.4] for row in both)  # two names of one token add up


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": ""}, r"No heads were given; .*heads='L2H3,L2H5'"),
        ({"heads": "L0H4"}, "There is no head L0H4 in this model"),
        ({"heads": "L2H0"}, "There is no head L2H0"),
        ({"heads": "first"}, "'first' is not the name of a head; write it like L9H9"),
        ({"weights": ""}, "No weight was given; put some on named positions, like weights='color_other_1=1'"),
        ({"weights": "subject=0"}, "No weight was given"),
        ({"weights": "verb=1"}, r"no position 'verb'; they have: subject, END, attractor\."),
        ({"weights": "subject"}, "'subject' is no weight; write a position and a number, like color_other_1=1"),
        ({"weights": "subject=-1"}, "'subject=-1' is no weight"),
        ({"weights": "subject=much"}, "'subject=much' is no weight"),
        ({"weights": "subject=1=2"}, "is no weight"),
        ({"weights": "²=1"}, "no position '²'"),
        ({"weights": "6=1"}, "There is no token 6 in every prompt; the shortest has 6"),
        ({"weights": "END=1", "position": "subject"}, "lies on a token after the query, which attention cannot see"),
        ({"weights": "5=1", "position": "1"}, "lies on a token after the query"),
        ({"position": "verb"}, "no position 'verb'; they have: subject, END"),
        ({"position": "6"}, "There is no token 6 in every prompt"),
        ({"draws": 0}, "draws is 0"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_what_cannot_be_edited_is_said(given, message, traced):
    with pytest.raises(WorkbenchError, match=message):
        repair(traced("gpt2"), make_task("subject_verb", n=8), **{"heads": "L0H0", "weights": "subject=1"} | given)


def test_heads_are_read_in_any_spelling(traced):
    assert _heads("a1.h2, 0.3 L1H2,,L0H0", traced("gpt2")) == [(0, 0), (0, 3), (1, 2)]


def without(monkeypatch, model, ending):
    """Let the model ignore edits of hooks with this ending."""
    logits = type(model).logits

    def ignoring(self, tokens, edits=None):
        return logits(self, tokens, {name: edit for name, edit in (edits or {}).items() if not name.endswith(ending)})

    monkeypatch.setattr(type(model), "logits", ignoring)


@pytest.mark.parametrize("family", MODULES)
def test_an_edit_that_takes_no_effect_is_refused(family, traced, monkeypatch):
    without(monkeypatch, traced(family), "hook_pattern")
    with pytest.raises(AnalysisError, match=r"edit of L0H1's attention did not take effect .* nothing was measured"):
        repair(traced(family), OBJECTS, **SEVERAL, draws=1)


@pytest.mark.parametrize("ending", ["hook_v", "hook_z"])
def test_an_edit_that_cannot_be_seen_is_refused(ending, traced, monkeypatch):
    without(monkeypatch, traced("gpt2"), ending)
    with pytest.raises(AnalysisError, match="does not give its heads' values, so an attention edit cannot be proved"):
        repair(traced("gpt2"), OBJECTS, **SEVERAL, draws=1)


def test_a_trained_model_is_repaired_by_one_head():
    """A head made to look at the other colours: more prompts turn right than wrong, and no control does as well."""
    task = make_task("colored_objects", n=128)
    model = load("zoo/tasks@1500", device="cpu")
    ds = repair(model, task, heads="L0H0", weights="color_other_1=1,color_other_2=1")
    before, after = ds["accuracy"].values
    assert after > before + 0.05 and after > ds["accuracy_random"].values.max()
    assert ds.attrs["p"] == pytest.approx(1 / 21) and ds.attrs["p"] <= 0.05
    was, now = ds["right"].values.astype(bool)
    assert (before, after) == (was.mean(), now.mean()) and ds.attrs["n"] == 128
    assert ds.attrs["broken"] == sum(a and not b for a, b in zip(was, now, strict=True))
    assert ds.attrs["mended"] == sum(b and not a for a, b in zip(was, now, strict=True))
    assert ds.attrs["mended"] > ds.attrs["broken"] > 0
    worse = repair(model, task, heads="L0H1", weights="color_other_1=1,color_other_2=1", draws=9)
    count = (worse["accuracy_random"].values >= worse["accuracy"].values[1]).sum()
    assert worse.attrs["p"] == pytest.approx((1 + count) / 10) and count > 0


def test_a_stop_keeps_the_controls_that_were_finished(traced):
    def until(last):
        with reporting(lambda what, done, total: done < last):
            return repair(traced("gpt2"), OBJECTS, **SEVERAL, draws=5)

    full = repair(traced("gpt2"), OBJECTS, **SEVERAL, draws=5)
    part = until(2)
    xr.testing.assert_equal(part, full.isel(seed=slice(2)))
    assert part.attrs["p"] == pytest.approx((1 + (part["accuracy_random"] >= part["accuracy"][1]).sum().item()) / 3)
    with pytest.raises(Cancelled, match="no result to keep"):
        until(0)


def test_the_same_seed_gives_the_same_numbers(traced, tmp_path):
    one, again = (repair(traced("gpt2"), OBJECTS, **SEVERAL, draws=4) for _ in range(2))
    xr.testing.assert_equal(one, again)
    read = store.load(store.save(one, tmp_path / "result.nc"))
    xr.testing.assert_equal(read, one)
    assert read.attrs == one.attrs
