"""Faithfulness against transformer_lens, whole heads ablated, closed forms and a planted circuit."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FAMILIES
from test_head_patching import planted
from transformer_lens.tools.analysis import attribution_patching as lens

from workbench import store
from workbench.analyses import AnalysisError, edge_attribution, faithfulness
from workbench.analyses._edges import KEPT
from workbench.analyses._patching import groups, two_runs
from workbench.analyses.faithfulness import ABLATIONS, _measurer, _random, area
from workbench.models.circuit_file import write_circuit
from workbench.models.graph import KINDS, Graph
from workbench.models.load import ModelError, load
from workbench.progress import Cancelled, reporting
from workbench.tasks import Task, make_task

ADDITIVE = [family for family in FAMILIES if family != "gemma2"]
TASK = make_task("subject_verb", n=8)
QUICK = {"steps": 1, "draws": 3}
every_additive = pytest.mark.parametrize("family", ADDITIVE)
every_ablation = pytest.mark.parametrize("how", ABLATIONS)


def measured(model, task=TASK, how="resample", start=None, batch=64):
    """The function from a circuit to the metric [prompt], and the metric of the clean and of the corrupted prompts."""
    prompts = task.encode(model.tokenizer, bos=model.bos)
    parts = groups(prompts, task.metric, batch)
    if start is not None:
        parts = [dataclasses.replace(part, start=start) for part in parts]
    clean, corrupted, runs = two_runs(model, prompts, parts, *KEPT)
    return _measurer(model, parts, runs, how), clean, corrupted


def some(graph, share, seed=0):
    """A random circuit."""
    return graph.valid & (np.random.default_rng(seed).random(graph.valid.shape) < share)


@every_additive
@every_ablation
def test_the_whole_model_is_one_and_nothing_is_zero(family, how, traced):
    model = traced(family)
    ds = faithfulness(model, TASK, ablation=how, **QUICK)
    assert ds["size"].values[-1] == model.edges.graph.valid.sum() and ds["fraction"].values[-1] == 1
    for name in ("faithfulness", "faithfulness_low", "faithfulness_null", "faithfulness_null_high"):
        assert ds[name].values[-1] == pytest.approx(1, abs=1e-4)
    measure, clean, corrupted = measured(model, how=how)
    np.testing.assert_allclose(measure(model.edges.graph.valid), clean, atol=1e-4)
    none = measure(np.zeros_like(model.edges.graph.valid))
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    if how == "resample":
        np.testing.assert_allclose(none, corrupted, atol=1e-4)
    elif how == "zero":  # nothing at all reaches the final norm: biases are 0 in these models
        np.testing.assert_allclose(none, 0, atol=1e-5)
    else:  # each writer's mean is there, and they sum to the mean of the stream
        stream = model.trunk.record(model.tensor(np.stack(prompts.clean)), "inputs").inputs[-1].mean((0, 1))
        with torch.no_grad():
            logits = model.trunk.logits(stream[None])[0]
        pairs = zip(prompts.answers, prompts.wrongs, strict=True)
        expected = [(logits[a].mean() - logits[w].mean()).item() for a, w in pairs]
        np.testing.assert_allclose(none, expected, atol=1e-4)


@every_additive
@every_ablation
def test_all_edges_out_of_heads_are_the_heads_themselves(family, how, traced):
    """Hooks on whole heads, at all positions, in two layers."""
    model, heads = traced(family), ((0, 1), (0, 3), (1, 2))
    measure, *_ = measured(model, how=how)
    kept = model.edges.graph.valid.copy()
    for layer, head in heads:
        kept[:, model.edges.graph.writer(layer, head)] = False
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    names = [f"blocks.{layer}.attn.hook_z" for layer in (0, 1)]
    own, other = (model.capture(np.stack(side), names)[1] for side in (prompts.clean, prompts.corrupted))

    def without(name, layer):
        def edit(value):
            value = value.clone()
            for head in (h for at, h in heads if at == layer):
                mean = own[name][:, :, head].mean((0, 1))
                value[:, :, head] = {"resample": other[name][:, :, head], "mean": mean, "zero": 0}[how]
            return value

        return edit

    logits = model.logits(np.stack(prompts.clean), {name: without(name, layer) for layer, name in enumerate(names)})
    pairs = zip(logits[:, -1], prompts.answers, prompts.wrongs, strict=True)
    expected = [(row[a].mean() - row[w].mean()).item() for row, a, w in pairs]
    np.testing.assert_allclose(measure(kept), expected, atol=1e-4)


@every_additive
def test_one_edge_ablated_is_the_edge_patched_in_the_clean_run(family, traced):
    model = traced(family)
    graph, (measure, clean, _) = model.edges.graph, measured(model)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    (group,) = groups(prompts, TASK.metric, 64)
    runs = [model.trunk.record(model.tensor(side)) for side in (group.clean, group.corrupted)]
    places, moved = np.argwhere(graph.valid), 0
    for reader, writer in places[np.random.default_rng(1).permutation(len(places))[:12]]:
        kept = graph.valid.copy()
        kept[reader, writer] = False
        layer, head, kind = graph.reader_cells[reader].tolist()
        with torch.no_grad():
            change = model.edges.added(runs[1], runs[0], writer, 0)[None]
            last = model.edges.patched(layer, KINDS[kind], [head], change, runs[0], 0)
        expected = np.empty(len(prompts))
        expected[group.rows] = group.meter(model.trunk.logits(last, group.columns(model.device)))[0]
        np.testing.assert_allclose(measure(kept), expected, atol=1e-4)
        moved += np.abs(expected - clean).max() > 1e-3
    assert moved


def lens_edges(graph, kept, length):
    """The circuit as transformer_lens' node pairs, at every position."""
    kinds = ("q_input", "k_input", "v_input", "mlp_in", "logits")
    for reader, writer in np.argwhere(kept):
        (at, which), (layer, head, kind) = graph.writer_cells[writer].tolist(), graph.reader_cells[reader].tolist()
        wrote = ("embed",) if at < 0 else ("mlp_out", at) if which < 0 else ("attn_head_out", at, which)
        read = kinds[kind], graph.layers - 1 if layer < 0 else layer, None if head < 0 else head
        for position in range(length):
            yield tuple(lens.Node(name, position, *place) for name, *place in (wrote, read))


@pytest.mark.parametrize(("share", "seed"), [(0.5, 0), (0.8, 1), (0.2, 2)])
def test_a_random_circuit_equals_transformer_lens(share, seed, traced):
    model = traced("gpt2")
    graph, prompts = model.edges.graph, TASK.encode(model.tokenizer, bos=model.bos)
    kept, (measure, clean, corrupted) = some(graph, share, seed), measured(model)
    found = measure(kept)
    assert np.abs(found - clean).max() > 0.01 and np.abs(found - corrupted).max() > 0.01
    for row in range(3):
        sides = [torch.tensor(side[row])[None] for side in (prompts.clean, prompts.corrupted)]
        right, wrong = prompts.answers[row], prompts.wrongs[row]
        result = lens.faithfulness(
            model.bridge,
            *sides,
            lambda logits, right=right, wrong=wrong: logits[0, -1, right].mean() - logits[0, -1, wrong].mean(),
            list(lens_edges(graph, kept, sides[0].shape[1])),
        )
        assert result.total_edges == graph.valid.sum() * sides[0].shape[1]
        expected = result.corrupt_metric + result.recovered * (result.full_metric - result.corrupt_metric)
        assert found[row] == pytest.approx(expected, abs=1e-5)


@every_additive
def test_positions_before_the_first_difference_may_be_skipped(family, traced):
    model, task = traced(family), make_task("ioi", n=6)
    (late, *_), (whole, *_) = measured(model, task, batch=2), measured(model, task, start=0)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    assert max(group.start for group in groups(prompts, task.metric, 2)) > 7
    for share in (0.0, 0.4, 0.9):
        kept = some(model.edges.graph, share)
        np.testing.assert_allclose(late(kept), whole(kept), atol=1e-5, rtol=1e-5)


def test_areas_are_trapezoids(traced):
    assert area(np.array([0.1, 0.5, 1.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(0.2 + 0.75)
    ds = faithfulness(traced("gpt2"), TASK, **QUICK)
    x, y = ds["fraction"].values, ds["faithfulness"].values
    for name, value in (("cpr", y), ("cmd", abs(1 - y))):
        by_hand = sum((x[i + 1] - x[i]) * (value[i] + value[i + 1]) / 2 for i in range(len(x) - 1))
        assert ds.attrs[name] == pytest.approx(by_hand, abs=1e-12)


def test_the_curve_is_what_the_circuits_keep(traced):
    """Each size holds the strongest edges, and so those of every smaller one."""
    model = traced("gpt2")
    graph, ds = model.edges.graph, faithfulness(model, TASK, ablation="mean", **QUICK)
    rank, score = ds["rank"].values, ds["score"].values
    assert (ds["valid"].values == graph.valid).all() and (rank[~graph.valid] == -1).all()
    assert sorted(rank[graph.valid]) == list(range(graph.valid.sum()))
    assert (np.diff(np.abs(score[graph.valid])[np.argsort(rank[graph.valid])]) <= 0).all()
    measure, clean, _ = measured(model, how="mean")
    none = measure(np.zeros_like(graph.valid)).mean()
    for size, found in zip(ds["size"].values, ds["faithfulness"].values, strict=True):
        kept = (rank >= 0) & (rank < size)
        assert kept.sum() == size and (kept <= graph.valid).all()
        assert found == pytest.approx((measure(kept).mean() - none) / (clean.mean() - none), abs=1e-5)


@pytest.mark.parametrize("graph", [Graph(2, 4, 4), Graph(2, 4, 2), Graph(3, 2, 2, True)])
def test_random_circuits_have_the_same_edges_of_each_kind(graph):
    kept = some(graph, 0.3)
    draws = [drawn for drawn, _ in zip(_random(kept, graph, np.random.default_rng(0)), range(50), strict=False)]
    for drawn in draws:
        assert drawn.dtype == bool and drawn.sum() == kept.sum() and (drawn <= graph.valid).all()
        np.testing.assert_array_equal(np.bincount(graph.types[drawn]), np.bincount(graph.types[kept]))
    often = np.mean(draws, axis=0)
    for kind in range(15):
        members = graph.valid & (graph.types == kind)
        assert np.abs(often[members] - kept[members].mean()).max() < 0.36  # five standard errors


def chain(fresh, words):
    """A GPT-2 in which L0H1 and L1H2 alone write anything, and the names of all edges that can carry a difference."""
    module, model = planted(fresh, words, keep={(0, 1): 1.0, (1, 2): 1.0})
    with torch.no_grad():
        for block in module.transformer.h:
            block.mlp.c_proj.weight.zero_()
    edges = [f"input->L0H1.{part}" for part in "qkv"] + [f"L0H1->L1H2.{part}" for part in "qkv"]
    edges += ["input->L1H2.k", "input->L1H2.v", "L0H1->logits", "L1H2->logits"]  # END is the same word in both runs
    return model(), edges


@pytest.mark.parametrize("method", ["inputs", "eap", "activations"])
def test_a_planted_circuit_is_found_and_keeps_everything(method, fresh, words):
    model, names = chain(fresh, words)
    graph, (measure, clean, corrupted) = model.edges.graph, measured(model)
    circuit = np.zeros_like(graph.valid)
    for name in names:
        circuit[graph.edge(name)] = True
    effects = np.zeros(graph.valid.shape)
    for reader, writer in np.argwhere(graph.valid):  # each edge alone, really ablated
        kept = graph.valid.copy()
        kept[reader, writer] = False
        effects[reader, writer] = np.abs(measure(kept) - clean).max()
    assert ((effects > 1e-4) == circuit).all() and effects[~circuit].max() < 1e-5
    np.testing.assert_allclose(measure(circuit), clean, atol=1e-5)
    np.testing.assert_allclose(measure(graph.valid & ~circuit), corrupted, atol=1e-5)
    score = np.abs(edge_attribution(model, TASK, method=method, exact=0)["score"].values)
    pairs = score[circuit][:, None] > score[graph.valid & ~circuit][None]
    assert pairs.mean() == 1  # the area under the ROC curve
    ds = faithfulness(model, TASK, method=method, draws=5)
    large = ds["size"].values >= len(names)
    np.testing.assert_allclose(ds["faithfulness"].values[large], 1, atol=1e-5)
    assert (ds["rank"].values[circuit] < len(names)).all()


def test_scores_are_of_other_prompts(traced):
    model = traced("gpt2")
    ds = faithfulness(model, TASK, steps=2, draws=1)
    other = edge_attribution(model, make_task("subject_verb", n=8, seed=1), steps=2, exact=0)
    np.testing.assert_allclose(ds["score"].values, other["score"].values, atol=1e-6)
    assert ds.attrs["held_out"] == 1 and ds.attrs["scores"] == "inputs"
    rows = [
        {"clean": f"{a} saw the {n}", "corrupted": f"{b} saw the {n}", "answer": " is", "wrong": " was"}
        for n in ("key", "boy", "girl", "cat")
        for a, b in (("Mary", "John"), ("Tom", "Dan"))
    ]
    assert faithfulness(model, Task.from_records(rows), **QUICK).attrs["held_out"] == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_circuit_file_gives_the_curve_of_its_scores(family, traced, tmp_path):
    model = traced(family)
    ds = faithfulness(model, TASK, **QUICK)
    path = write_circuit(tmp_path / "circuit.json", model.edges.graph, ds["score"].values, ds["valid"].values)
    again = faithfulness(model, TASK, circuit=str(path), **QUICK)
    np.testing.assert_array_equal(again["rank"], ds["rank"])
    np.testing.assert_allclose(again["faithfulness"], ds["faithfulness"], atol=1e-12)
    np.testing.assert_allclose(again["faithfulness_null"], ds["faithfulness_null"], atol=1e-12)
    assert again.attrs["scores"] == str(path)


def test_what_cannot_be_measured_is_said(traced):
    with pytest.raises(AnalysisError, match=r"a norm after attention mixes them\. Use the analysis 'ablation'"):
        faithfulness(traced("gemma2"), TASK)
    with pytest.raises(ModelError, match=r"cannot be told apart \(the weights are folded"):
        faithfulness(traced("gpt2", fold=True), TASK)
    for bad in ({"draws": 0}, {"batch": 0}, {"steps": 0}):
        with pytest.raises(AnalysisError, match=f"{next(iter(bad))} is 0"):
            faithfulness(traced("gpt2"), TASK, **QUICK | bad)


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_stop_keeps_the_sizes_that_were_finished(finished, traced):
    model, each = traced("gpt2"), QUICK["draws"] + 1

    def report(what, done, total):
        return what.startswith("scores") or done < finished * each + 2

    with reporting(report):
        if not finished:
            with pytest.raises(Cancelled, match="no result to keep"):
                faithfulness(model, TASK, **QUICK)
            return
        part = faithfulness(model, TASK, **QUICK)
    full = faithfulness(model, TASK, **QUICK).isel(size=slice(finished))
    xr.testing.assert_equal(part, full)


@every_ablation
def test_the_same_seed_gives_the_same_numbers(how, traced, tmp_path):
    one, again = (faithfulness(traced("llama"), TASK, ablation=how, **QUICK) for _ in range(2))
    xr.testing.assert_equal(one, again)
    assert {name for name in one.attrs if one.attrs[name] != again.attrs[name]} <= {"created_at", "seconds"}
    read = store.load(store.save(one, tmp_path / "result.nc"))
    xr.testing.assert_equal(read, one)
    assert read.attrs == one.attrs and read.attrs["ablation"] == how


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_half_precision_runs_from_none_to_all(family, saved):
    ds = faithfulness(load(saved(family), dtype="bfloat16"), make_task("ioi", n=8), draws=1, steps=1, method="eap")
    assert float(ds["faithfulness"][-1]) == pytest.approx(1, abs=0.05)
