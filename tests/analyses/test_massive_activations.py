"""Massive activations against loops over plain transformers' hidden states, and against one that was planted."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.analyses import AnalysisError, massive_activations
from workbench.analyses.massive_activations import METHODS, Rule, _chosen, gaussian_ratio
from workbench.models.load import wrap
from workbench.tasks import make_task

LENGTH, ROWS, RATIO, THRESHOLD = 14, 5, 3.5, 0.5
SMALL = {"length": LENGTH, "sequences": ROWS, "batch": 2, "draws": 2}
LOOSE = {**SMALL, "ratio": RATIO, "threshold": THRESHOLD}


def task():
    return make_task("ioi", n=8)


def documents(model):
    return task().documents(model.tokenizer, length=LENGTH, count=ROWS, bos=True)


def blocks_of(module):
    return module.transformer.h if hasattr(module, "transformer") else module.model.layers


def outputs(module, tokens, edit=None, layer=-1):
    """Every block's output, [layer][row, pos, width], and the next-token loss [row]; one output may be edited."""
    found, handles = [], []

    def keep(index):
        def hook(part, given, out):
            hidden = out[0] if isinstance(out, tuple) else out
            if index == layer:
                hidden = torch.from_numpy(edit(hidden.numpy()))
            found.append(hidden.numpy())
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return hook

    for index, block in enumerate(blocks_of(module)):
        handles.append(block.register_forward_hook(keep(index)))
    with torch.no_grad():
        logits = module(torch.from_numpy(tokens)).logits.double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    rows = [[-logits[row, pos, tokens[row, pos + 1]].item() for pos in range(LENGTH - 1)] for row in range(len(tokens))]
    return found, np.mean(rows, axis=1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_number_equals_its_definition_written_out(family, traced, saved):
    model = traced(family)
    ds = massive_activations(model, task(), **LOOSE)
    tokens = documents(model)
    module = AutoModelForCausalLM.from_pretrained(saved(family), attn_implementation="eager").eval()
    hidden, loss = outputs(module, tokens)
    massive = np.zeros((2, ROWS, LENGTH, 32), bool)
    for layer in range(2):
        for row in range(ROWS):
            size = sorted((abs(x), pos, dim) for (pos, dim), x in np.ndenumerate(hidden[layer][row]))
            median = size[(len(size) - 1) // 2][0]
            for rank in range(3):
                value, pos, dim = size[-1 - rank]
                at = {"prompt": row, "layer": layer, "measured": f"largest {rank + 1}"}
                np.testing.assert_allclose(ds["magnitude_prompt"].sel(at), value, atol=1e-6 * value)
                assert (ds["position_prompt"].sel(at), ds["dimension_prompt"].sel(at)) == (pos, dim)
            for pos, dim in np.ndindex(LENGTH, 32):
                value = abs(hidden[layer][row, pos, dim])
                massive[layer, row, pos, dim] = value > THRESHOLD and value >= RATIO * median
    assert 0 < massive.mean() < 0.1
    np.testing.assert_allclose(ds["massive_count"], massive.sum((2, 3)).mean(1), atol=1e-12)
    np.testing.assert_allclose(ds["massive_share"], massive.any((2, 3)).mean(1), atol=1e-12)
    np.testing.assert_allclose(ds["massive_dimension"], massive.any(2).mean(1), atol=1e-12)
    np.testing.assert_allclose(ds["massive_position"], massive.any(3).mean(1), atol=1e-12)
    np.testing.assert_allclose(ds["loss"], loss, atol=1e-5)
    having = massive.any((2, 3)).sum(1)
    layer = int(np.flatnonzero(having >= having.max() / 2)[0])
    assert ds.attrs["layer_edited"] == layer
    means = {
        d: hidden[layer][..., d][massive[layer][..., d]].mean() for d in np.flatnonzero(massive[layer].any((0, 1)))
    }
    for method in ("zero", "mean"):
        target = np.array([means.get(d, 0.0) if method == "mean" else 0.0 for d in range(32)], np.float32)
        edited = np.where(massive[layer], target, hidden[layer])
        _, after = outputs(module, tokens, lambda value, edited=edited: edited, layer)
        np.testing.assert_allclose(ds["loss_change"].sel({"method": method}), (after - loss).mean(), atol=1e-5)
        moved = [abs(edited - hidden[layer])[row].sum() / max(massive[layer, row].sum(), 1) for row in range(ROWS)]
        np.testing.assert_allclose(ds["moved"].sel({"method": method}), np.mean(moved), rtol=1e-5)
    assert abs(ds["loss_change"].sel({"method": "zero"})) > 1e-3
    np.testing.assert_allclose(ds["edited"].values[:3], massive[layer].sum((1, 2)).mean(), rtol=1e-6)


def planted(fresh, size=600.0):
    """GPT-2 whose second block's MLP writes `size` into dimension 7 of the first token, and nothing anywhere else."""
    module = fresh("gpt2")
    with torch.no_grad():
        module.transformer.wte.weight[:, 0] = 0
        module.transformer.wpe.weight[:, 0] = 0
        for table in (module.transformer.wte.weight, module.transformer.wpe.weight):
            table[:, 1:] -= table[:, 1:].mean(1, keepdim=True)
        module.transformer.wpe.weight[0, :2] = torch.tensor([10.0, -10.0])
        for block in module.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
        first = module.transformer.wte.weight[1] + module.transformer.wpe.weight[0]
        reading = 4 * ((first - first.mean()) / first.std(correction=0))[0]  # GELU is the identity up there
        module.transformer.h[1].mlp.c_fc.weight[:, 0] = 0
        module.transformer.h[1].mlp.c_fc.weight[0, 0] = 4
        module.transformer.h[1].mlp.c_proj.weight[0, 7] = size / reading
    return module


def test_a_planted_activation_is_found_where_it_was_planted(fresh, words):
    module = planted(fresh)
    ds = massive_activations(wrap(module, words, override=True), task(), **SMALL)
    assert ds.attrs["layer_edited"] == 1 and "above 100" in ds.attrs["rule"]
    np.testing.assert_array_equal(ds["massive_share"], [0, 1])
    np.testing.assert_array_equal(ds["massive_count"], [0, 1])
    for name, dim, at in (("massive_dimension", "component", 7), ("massive_position", "pos", 0)):
        expected = np.zeros(ds[name].shape)
        expected[1, at] = 1
        np.testing.assert_array_equal(ds[name].transpose("layer", dim), expected)
    largest = ds.sel(layer=1, measured="largest 1")
    assert (largest["dimension"], largest["position"], str(largest["top_token"].values)) == (7, 0, "<bos>")
    assert abs(float(largest["magnitude"]) - 600) < 5  # what the embedding had there is added
    change = dict(zip(ds["method"].values.tolist(), ds["loss_change"].values, strict=True))
    assert abs(change["zero"]) > 0.01, "the last norm of the first token sees it"
    assert abs(change["mean"]) < 1e-6, "the same in every sequence: its own mean"
    np.testing.assert_allclose(ds["edited"], 1)
    np.testing.assert_allclose(ds["moved"].sel({"method": "zero"}), largest["magnitude"], rtol=1e-6)
    assert ds["moved"].sel({"method": "mean"}) < 1e-3 and (ds["moved"].values[2:] < 20).all()


def test_without_a_threshold_the_ratio_alone_counts(fresh, words):
    model = wrap(planted(fresh, 60.0), words, override=True)
    found = [massive_activations(model, task(), **SMALL, ratio=100.0, threshold=t) for t in (100.0, 0.0)]
    assert [ds.attrs["layer_edited"] for ds in found] == [-1, 1]
    assert "no absolute threshold" in found[1].attrs["rule"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_random_model_has_none(family, traced):
    ds = massive_activations(traced(family), task(), **SMALL, ratio=50.0, threshold=0.0)
    assert ds.attrs["layer_edited"] == -1
    for name in ("massive_share", "massive_count", "massive_dimension", "loss_change", "loss_change_high", "edited"):
        assert not ds[name].values.any()


@pytest.mark.parametrize(("count", "top"), [(100, 3), (5000, 5)])
def test_the_null_is_what_gaussian_numbers_give(count, top):
    drawn = np.sort(abs(np.random.default_rng(0).normal(size=(3000, count))))
    expected = (drawn[:, ::-1][:, :top] / np.median(drawn, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(gaussian_ratio(count, top), expected, rtol=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_a_control_takes_as_many_others(method):
    hidden = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    hidden[0, 2, [1, 4]], hidden[1, 0, 3], hidden[1, 5, 3] = 500.0, -500.0, 500.0
    mask, _ = Rule(100.0, 100.0)(hidden)
    assert mask.sum((1, 2)).tolist() == [2, 2, 0]
    chosen = _chosen(hidden, mask, method, np.random.default_rng(0))
    if "other" not in method:
        assert torch.equal(chosen, mask)
        return
    assert not (chosen & mask).any() and chosen[0].sum() == 2 and not chosen[2].any()
    if "dimensions" in method:
        assert torch.equal(chosen.sum(-1), mask.sum(-1))
        return
    assert not chosen[mask.any(-1)].any()
    (where,) = torch.nonzero(chosen[0].sum(-1))[0].tolist()
    assert set(torch.nonzero(chosen[0, where]).flatten().tolist()) == set(
        hidden[0, where].abs().topk(2).indices.tolist()
    )


def test_an_edit_that_does_not_arrive_is_refused(traced, monkeypatch):
    model = traced("gpt2")
    run = model.scanner.run

    def late(tokens, read, streams=None):
        return run(tokens, read, streams={layer: lambda x, edit=edit: edit(x) * 1.5 for layer, edit in streams.items()})

    def broken(tokens, read, streams=None):
        return run(tokens, read) if streams is None else late(tokens, read, streams)

    monkeypatch.setattr(model.scanner, "run", broken)
    with pytest.raises(AnalysisError, match="does not give on what it was set to"):
        massive_activations(model, task(), **LOOSE)


def test_intervals_hold_their_means(traced):
    ds = massive_activations(traced("llama"), task(), **LOOSE)
    for name in ("magnitude", "median", "limit", "massive_share", "massive_count", "loss_change"):
        low, high = ds[f"{name}_low"] - 1e-6, ds[f"{name}_high"] + 1e-6
        assert (low <= ds[name]).all() and (ds[name] <= high).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"length": 129}, "length is 129; this model takes 2 to 128"),
        ({"ratio": 1}, "ratio is 1"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"threshold": -1}, "threshold -1"),
        ({"top": 0}, "top is 0"),
    ],
)
def test_what_cannot_be_is_refused(given, said, traced):
    with pytest.raises(AnalysisError, match=said):
        massive_activations(traced("gpt2"), task(), **given)
