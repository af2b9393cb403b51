"""Ablation of sets of heads against hooks on plain transformers, against a planted head, and what is refused."""

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FAMILIES
from test_head_patching import planted
from transformers import AutoModelForCausalLM

from workbench import store
from workbench.analyses import AnalysisError, ablation
from workbench.analyses._base import resamples
from workbench.analyses._patching import other_heads
from workbench.analyses.ablation import parse_sets
from workbench.models.load import load
from workbench.registry import WorkbenchError
from workbench.schema import concat
from workbench.tasks import make_task

SIZE = 8  # of a head
SETS = "pair=L0H1,L1H2; one=L1H0; late=L1H1 L1H3; only ioi="
HEADS = {"pair": [(0, 1), (1, 2)], "one": [(1, 0)], "late": [(1, 1), (1, 3)], "only ioi": []}
every_ablation = pytest.mark.parametrize("how", ["resample", "mean", "zero"])


def settled(ds):
    """The dataset without what differs between two equal runs."""
    return ds.assign_attrs(created_at="", seconds=0)


class Plain:
    """A model as transformers has it, one prompt at a time, with head outputs read or replaced by plain hooks."""

    def __init__(self, folder):
        self.module = AutoModelForCausalLM.from_pretrained(folder).eval()
        names = [f"transformer.h.{layer}.attn.c_proj" for layer in (0, 1)]
        if not hasattr(self.module, "transformer"):
            names = [f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)]
        self.outputs = [self.module.get_submodule(name) for name in names]

    def run(self, tokens, edits=None):
        """Last logits, and what each output projection was given [layer, pos, d_model]; edits (layer, head): value."""
        kept, handles = {}, []

        def hook(layer):
            def before(module, args):
                value = args[0].clone()
                kept[layer] = args[0][0].clone()
                for (at, head), instead in (edits or {}).items():
                    if at == layer:
                        value[0, :, head * SIZE : (head + 1) * SIZE] = instead
                return (value,)

            return before

        for layer, output in enumerate(self.outputs):
            handles.append(output.register_forward_pre_hook(hook(layer)))
        with torch.inference_mode():
            logits = self.module(torch.tensor(tokens)[None]).logits[0, -1]
        for handle in handles:
            handle.remove()
        return logits, torch.stack([kept[layer] for layer in range(len(self.outputs))])


def loops(plain, prompts, how, heads):
    """Metric [prompt] and whether the answer is right [prompt] without some heads."""
    every = torch.cat([plain.run(ids)[1] for ids in prompts.clean], 1)
    values, right = [], []
    for clean, corrupted, a, w in zip(prompts.clean, prompts.corrupted, prompts.answers, prompts.wrongs, strict=True):
        other = plain.run(corrupted)[1]
        edits = {}
        for layer, head in heads:
            given = {"resample": other[layer], "mean": every[layer].mean(0), "zero": torch.zeros(4 * SIZE)}[how]
            edits[layer, head] = given[..., head * SIZE : (head + 1) * SIZE]
        logits = plain.run(clean, edits)[0]
        values.append((logits[a].mean() - logits[w].mean()).item())
        right.append((logits[a].max() > logits[w].max()).item())
    return np.array(values), np.array(right)


@every_ablation
@pytest.mark.parametrize("task", [make_task("subject_verb", n=8), make_task("ioi", n=8)], ids=["one length", "lengths"])
def test_sets_equal_loops_of_plain_hooks(how, task, traced, saved):
    model, plain = traced("gpt2"), Plain(saved("gpt2"))
    ds = ablation(model, task, sets=SETS, ablation=how, draws=2, batch=3)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    clean, sure = loops(plain, prompts, how, [])
    corrupted = [plain.run(ids)[0] for ids in prompts.corrupted]
    pairs = zip(corrupted, prompts.answers, prompts.wrongs, strict=True)
    gap = clean - np.array([(row[a].mean() - row[w].mean()).item() for row, a, w in pairs])
    assert ds["component"].values.tolist() == list(HEADS)
    assert ds.attrs["clean"] == pytest.approx(clean.mean(), abs=1e-5)
    assert ds.attrs["clean"] - ds.attrs["corrupted"] == pytest.approx(gap.mean(), abs=1e-5)
    assert ds.attrs["accuracy_clean"] == sure.mean() and ds.attrs["ablation"] == how
    for name, heads in HEADS.items():
        values, right = loops(plain, prompts, how, heads)
        found = ds.sel(component=name)
        lost = found["lost"].item() * (ds.attrs["clean"] - ds.attrs["corrupted"])
        np.testing.assert_allclose(lost, (clean - values).mean(), atol=1e-5)
        assert found["accuracy"] == right.mean()
        ends = np.quantile([w @ (clean - values) / (w @ gap) for w in resamples(8, 1000, task.seed)], [0.025, 0.975], 0)
        np.testing.assert_allclose([found["lost_low"], found["lost_high"]], ends, atol=1e-4, rtol=1e-3)


def test_grouped_query_heads_are_ablated_one_by_one(traced, saved):
    task, model, plain = make_task("subject_verb", n=8), traced("llama"), Plain(saved("llama"))
    prompts = task.encode(model.tokenizer, bos=model.bos)
    for how in ("resample", "mean"):
        ds = ablation(model, task, sets=SETS, ablation=how, draws=1)
        for name, heads in HEADS.items():
            expected = (loops(plain, prompts, how, [])[0] - loops(plain, prompts, how, heads)[0]).mean()
            found = ds["lost"].sel(component=name).item() * (ds.attrs["clean"] - ds.attrs["corrupted"])
            assert found == pytest.approx(expected, abs=1e-5)


@every_ablation
def test_an_empty_set_loses_exactly_nothing(how, traced):
    ds = ablation(traced("gpt2"), make_task("subject_verb", n=8), sets="only ioi=; a=L0H0", ablation=how, draws=3)
    empty = ds.sel(component="only ioi")
    for name in ("lost", "lost_low", "lost_high", "lost_random", "lost_null", "lost_null_high"):
        assert (empty[name].values == 0).all()
    assert empty["accuracy"] == empty["accuracy_null"] == ds.attrs["accuracy_clean"]
    assert empty["heads"] == "" and ds["heads"].sel(component="a") == "L0H0"


@every_ablation
def test_the_one_head_that_moves_anything_is_all_there_is_to_lose(how, fresh, words):
    """Without it nothing in the clean run tells it from the corrupted one: the last word is the same in both."""
    _, model = planted(fresh, words, keep={(1, 2): 1.0})
    names = [f"L{layer}H{head}" for layer in (0, 1) for head in range(4)]
    sets = "; ".join(f"{name}={name}" for name in names) + f"; others={','.join(n for n in names if n != 'L1H2')}"
    ds = ablation(model(), make_task("subject_verb", n=8), sets=sets, ablation=how, draws=2)
    lost = dict(zip(ds["component"].values.tolist(), ds["lost"].values, strict=True))
    assert all(abs(lost[name]) < 1e-5 for name in lost if name != "L1H2")
    if how == "resample":
        assert lost["L1H2"] == pytest.approx(1, abs=1e-5)
    assert abs(lost["L1H2"]) > 0.05


def test_random_heads_that_hold_the_planted_one_lose_all(fresh, words):
    """In layer 1 each draw of one head beside the set's own is either the planted one or another: 1 or 0."""
    _, model = planted(fresh, words, keep={(1, 2): 1.0})
    ds = ablation(
        model(), make_task("subject_verb", n=8), sets="a=L1H0; b=L0H0,L0H1; all=L1H0,L1H1,L1H2,L1H3", draws=30
    )
    drawn = ds["lost_random"]
    one = drawn.sel(component="a").values
    assert set(np.round(one, 4)) == {0.0, 1.0} and 0.05 < one.mean() < 0.7  # a third of the draws
    np.testing.assert_allclose(drawn.sel(component="b").values, 0, atol=1e-5)
    np.testing.assert_allclose(drawn.sel(component="all").values, 1, atol=1e-5)
    np.testing.assert_allclose(ds["lost_null"].values, drawn.values.mean(1), atol=1e-12)
    np.testing.assert_allclose(ds["lost_null_high"].values, np.quantile(drawn.values, 0.95, axis=1), atol=1e-12)


def test_all_heads_resampled_where_clean_equals_corrupted_lose_nothing(saved, monkeypatch):
    """Each head then gives what it would have given anyway."""
    model, task = load(saved("gpt2"), device="cpu"), make_task("subject_verb", n=8)
    model.__dict__.update(trunk=None, _trunk_or_reason="hooks were asked for")
    capture, clean = type(model).capture, {}
    prompts = task.encode(model.tokenizer, bos=model.bos)
    for mine, other in zip(prompts.clean, prompts.corrupted, strict=True):
        clean[tuple(other)] = mine

    def captured(self, tokens, names):
        return capture(self, np.stack([clean[tuple(row)] for row in tokens]), names)

    monkeypatch.setattr(type(model), "capture", captured)
    every = ",".join(f"L{layer}H{head}" for layer in (0, 1) for head in range(4))
    ds = ablation(model, task, sets=f"all={every}", draws=1)
    np.testing.assert_allclose(ds["lost"].values, 0, atol=1e-5)


def test_random_sets_have_as_many_heads_in_each_layer_and_none_of_the_set_where_there_are_others():
    rng, heads = np.random.default_rng(0), [(0, 3), (2, 0), (2, 1), (2, 3), (5, 2)]
    draws = [other_heads(heads, 4, rng) for _ in range(200)]
    for drawn in draws:
        assert len(set(drawn)) == len(drawn)
        assert sorted(layer for layer, _ in drawn) == [0, 2, 2, 2, 5] and {head for _, head in drawn} <= set(range(4))
    assert {head for drawn in draws for layer, head in drawn if layer == 0} == {0, 1, 2}
    assert {head for drawn in draws for layer, head in drawn if layer == 2} == {0, 1, 2, 3}  # only one is left over
    assert other_heads([], 4, rng) == []


def test_equal_sets_have_equal_controls(traced):
    ds = ablation(traced("gpt2"), make_task("subject_verb", n=8), sets="a=L0H1,L1H2; b=L1H2,L0H1; c=L0H1", draws=4)
    drawn = ds["lost_random"].values
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_head_named_twice_counts_once(traced):
    assert parse_sets("a=L0H1,L0H1,0.1", 2, 4) == {"a": [(0, 1)]}
    task = make_task("subject_verb", n=8)
    once, often = (ablation(traced("gpt2"), task, sets=s, draws=3) for s in ("a=L0H1", "a=" + "L0H1," * 5))
    xr.testing.assert_equal(once, often)


def test_sets_are_read_in_any_spelling():
    text = " a = L0H1, a1.h2 ;b=1.3 L0H0;; c =;"
    assert parse_sets(text, 2, 4) == {"a": [(0, 1), (1, 2)], "b": [(1, 3), (0, 0)], "c": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"No heads were given; .*sets='shared=L0H1,L2H3'"),
        (" ; ", "No heads were given"),
        ("L0H1,L1H2", r"'L0H1,L1H2' is not a set of heads .*write it like shared=L0H1,L2H3"),
        ("=L0H1", "is not a set of heads"),
        ("a=L0H1; a=L1H2", "'a=L1H2' is not a set of heads of its own"),
        ("a=L2H0", "There is no head L2H0: the model has 2 layers of 4 heads"),
        ("a=L0H1; b=L1H4", "There is no head L1H4"),
        ("a=head", "'head' is not the name of a head; write it like L9H9"),
    ],
)
def test_what_is_no_set_is_said(text, message, traced):
    with pytest.raises(WorkbenchError, match=message):
        ablation(traced("gpt2"), make_task("subject_verb", n=8), sets=text)


def test_a_corruption_that_changes_nothing_is_refused(fresh, words):
    _, model = planted(fresh, words, keep={})
    with pytest.raises(AnalysisError, match=r"'number' leaves the metric of 'subject_verb' as it is"):
        ablation(model(), make_task("subject_verb", n=8), sets="a=L0H0")


def test_the_same_seed_gives_the_same_numbers(traced, tmp_path):
    model, task = traced("gpt2"), make_task("subject_verb", n=8)
    one, again = (ablation(model, task, sets=SETS, draws=4) for _ in range(2))
    xr.testing.assert_identical(settled(one), settled(again))
    read = store.load(store.save(one, tmp_path / "result.nc"))
    xr.testing.assert_equal(read, one)
    assert read.attrs == one.attrs and read["lost"].attrs == one["lost"].attrs


def test_two_tasks_are_put_side_by_side(traced):
    """One task's circuit ablated, the other measured."""
    model, tasks = traced("gpt2"), ("subject_verb", "ioi")
    parts = {name: ablation(model, make_task(name, n=8), sets=SETS, draws=2) for name in tasks}
    both = concat(parts, dim="measured")
    assert both["lost"].dims == ("measured", "component") and both["measured"].values.tolist() == list(tasks)
    for name in tasks:
        np.testing.assert_array_equal(both["lost"].sel(measured=name), parts[name]["lost"])
        np.testing.assert_array_equal(both["lost_random"].sel(measured=name), parts[name]["lost_random"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["resample", "mean", "zero"])
def test_the_fast_way_gives_the_numbers_of_plain_hooks(family, how, saved):
    task, found = make_task("subject_verb", n=8), []
    for plainly in (False, True):
        model = load(saved(family), device="cpu")
        if plainly:
            model.__dict__.update(trunk=None, _trunk_or_reason="hooks were asked for")
        found.append(ablation(model, task, sets="a=L0H1,L1H2; b=L1H0,L1H3; c=L0H0", ablation=how, draws=2))
    for name in ("lost", "lost_random"):
        np.testing.assert_allclose(found[0][name].values, found[1][name].values, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(found[0]["accuracy"].values, found[1]["accuracy"].values)
