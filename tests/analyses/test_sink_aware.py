"""Sink-aware patching against loops over plain transformers, and against heads planted parked or speaking."""

import numpy as np
import pytest
import torch
from plain_heads import HEADS, Plain, mixed
from planted_heads import BOS, A, B, blank, names, normed, set_head

from workbench.analyses import AnalysisError, head_patching, overlap, sink_aware_patching
from workbench.analyses.sink_aware_patching import LEAST, at_rest
from workbench.models.load import load, wrap
from workbench.tasks import make_task

SMALL = {"draws": 30, "batch": 5}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_run_equals_plain_transformers_with_its_z_written_in(family, traced, saved):
    model, task, plain = traced(family), make_task("subject_verb", n=9), Plain(saved(family), family)
    ds, prompts = sink_aware_patching(model, task, **SMALL), task.encode(model.tokenizer, bos=True)
    clean, corrupted = np.stack(prompts.clean), np.stack(prompts.corrupted)
    (a, v), (b, w) = plain.seen(clean), plain.seen(corrupted)
    best, floor = (plain.metric(side, prompts.answers, prompts.wrongs) for side in (clean, corrupted))
    start = int((clean != corrupted).any(0).argmax())
    for layer, head in np.ndindex(2, HEADS):
        z = mixed(a[layer], v[layer])[:, :, head]
        rest = np.zeros(z.shape)
        for row, query in np.ndindex(z.shape[:2]):
            own, other = a[layer, row, head, query, 0], b[layer, row, head, query, 0]
            rest[row, query] = own * w[layer, row, 0, head]
            for key in range(1, query + 1):
                weight = b[layer, row, head, query, key] / (1 - other)
                rest[row, query] += (1 - own) * weight * w[layer, row, key, head]
        at = {"layer": layer, "head": head}
        found = {}
        for name, patch in (("plain", z), ("sink", rest)):
            found[name] = plain.metric(corrupted, prompts.answers, prompts.wrongs, layer, head, patch)
            np.testing.assert_allclose(ds[f"metric_{name}"].sel(at), found[name], atol=1e-5)
        beyond = (found["plain"] - found["sink"]).mean() / (best - floor).mean()
        np.testing.assert_allclose(ds["effect"].sel(at), beyond, atol=1e-5)
        for name, pattern in (("sink_clean", a), ("sink_corrupted", b)):
            np.testing.assert_allclose(ds[name].sel(at), pattern[layer, :, head, start:, 0].mean(), atol=1e-6)
    assert abs(ds["effect_sink"]).max() > 0.01
    queries = np.arange(start, clean.shape[1])
    np.testing.assert_allclose(ds["sink_null"], (1 / (queries + 1)).mean(), rtol=1e-12)


def test_the_plain_effect_is_that_of_head_patching_and_the_parts_add_up(traced):
    model, task = traced("llama"), make_task("ioi", n=10, corruption="value_swap")
    ds, plain = sink_aware_patching(model, task, **SMALL), head_patching(model, task, **SMALL)
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(ds[f"effect_plain{end}"], plain[f"effect{end}"], atol=1e-6)
    np.testing.assert_allclose(ds["effect"] + ds["effect_sink"], ds["effect_plain"], atol=1e-12)
    recovered = (ds["metric"] - ds["metric_corrupted"]).mean("prompt")
    gap = (ds["metric_clean"] - ds["metric_corrupted"]).mean()
    np.testing.assert_allclose(ds["effect"], recovered / gap, atol=1e-12)


def test_at_rest_exchanges_the_attention_on_the_sink_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    rest, value = torch.rand(2, 5, 3, generator=generator), torch.randn(2, 3, 8, generator=generator)
    elsewhere = torch.randn(2, 5, 3, 8, generator=generator)
    other = torch.rand(2, 5, 3, generator=generator)
    z = rest[..., None] * value[:, None] + (1 - rest[..., None]) * elsewhere
    torch.testing.assert_close(at_rest(z, rest, rest, value), z)
    expected = other[..., None] * value[:, None] + (1 - other[..., None]) * elsewhere
    torch.testing.assert_close(at_rest(z, other, rest, value), expected, atol=1e-4, rtol=1e-4)
    wholly = torch.ones_like(rest)
    found = at_rest(value[:, None].expand_as(z), 0 * wholly, wholly, value)
    assert found.abs().max() < 1e-6 / LEAST, "a head that said nothing is not made to say something"


def parked(module, words, head, reads, strength):
    """A head whose values are all the same but for an empty one at BOS: it tells only how much it rests there."""
    empty = -1 / normed(module, words.bos_token_id, 0)[BOS]
    key = {BOS: 0.5, **dict.fromkeys(reads, -1.0)}
    set_head(module.transformer.h[1], head, key=key, value={BOS: empty}, constant=1.0, writes=-strength)


def test_a_head_that_only_wakes_in_the_corrupted_run_is_parked(fresh, words):
    module = blank(fresh, words)
    parked(module, words, 0, [A], 1.0)
    ds = sink_aware_patching(wrap(module, words, override=True), names("Mary", "John", "a"), draws=50)
    head = ds.sel(layer=1, head=0)
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(head[f"effect_plain{end}"], 1, atol=1e-5)
        np.testing.assert_allclose(head[f"effect_sink{end}"], 1, atol=1e-5)
        np.testing.assert_allclose(head[f"effect{end}"], 0, atol=1e-5)
    assert np.argwhere(ds["parked"].values).tolist() == [[1, 0]]
    assert head["sink_clean"] > head["sink_corrupted"] + 0.2


def speaking(module, head, reads, strength):
    """A head at rest on BOS that leaves it for the name it knows, and says which one it is."""
    key = {BOS: 0.5, **dict.fromkeys(reads, 1.0)}
    set_head(module.transformer.h[1], head, key=key, value=dict.fromkeys(reads, 1.0), writes=strength)


def test_a_head_that_leaves_the_sink_to_speak_is_not_parked(fresh, words):
    module = blank(fresh, words)
    speaking(module, 0, [A], 1.0)
    ds = sink_aware_patching(wrap(module, words, override=True), names("Mary", "John", "a"), draws=50)
    head = ds.sel(layer=1, head=0)
    np.testing.assert_allclose(head["effect_plain"], 1, atol=1e-5)
    assert head["sink_corrupted"] > head["sink_clean"] + 0.2
    assert head["effect_low"] > 0.7 and not ds["parked"].any()


def test_an_overlap_is_inflated_by_a_shared_parked_head_and_not_beyond_the_sink(fresh, words):
    module = blank(fresh, words)
    parked(module, words, 0, [A, B], 1.0)
    speaking(module, 1, [A], 0.1)
    speaking(module, 2, [B], 0.1)
    model = wrap(module, words, override=True)
    tasks = [names("Mary", "John", "a"), names("Tom", "Dan", "b")]
    plain = overlap(*[head_patching(model, task, draws=20) for task in tasks], draws=50)
    aware = [sink_aware_patching(model, task, draws=20) for task in tasks]
    beyond = overlap(*aware, draws=50)
    assert plain.attrs["chosen"] == beyond.attrs["chosen"] == 1
    assert float(plain["iou"].sel(size=1)) == 1 and np.argwhere(plain["shared"].values).tolist() == [[1, 0]]
    assert float(beyond["iou"].sel(size=1)) == 0 and not beyond["shared"].any()
    assert [np.argwhere(ds["parked"].values).tolist() for ds in aware] == [[[1, 0]]] * 2
    assert "iou_ceiling" in beyond and beyond["accuracy"].shape == (2,)
    members = [np.argwhere(member).tolist() for member in beyond["member"].values]
    assert members == [[[1, 1]], [[1, 2]]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_the_fast_way_gives_the_numbers_of_plain_hooks(family, saved):
    task, found = make_task("ioi", n=9, corruption="value_swap"), []
    for plainly in (False, True):
        model = load(saved(family), device="cpu")
        if plainly:
            model.__dict__.update(trunk=None, _trunk_or_reason="hooks were asked for")
        found.append(sink_aware_patching(model, task, **SMALL))
    for name in ("metric_plain", "metric_sink"):
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-4)


def test_a_folded_model_can_be_patched_too(saved):
    task = make_task("subject_verb", n=8)
    raw, folded = (sink_aware_patching(load(saved("gpt2"), fold=fold), task, **SMALL) for fold in (False, True))
    np.testing.assert_allclose(raw["effect_plain"], folded["effect_plain"], atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_random_heads_are_not_parked(family, traced):
    ds = sink_aware_patching(traced(family), make_task("subject_verb", n=16), draws=50)
    assert not ds["parked"].any()


@pytest.mark.parametrize("given", [{"margin": -1.0}, {"margin": 1.0}, {"within": 0.0}, {"within": 1.0}])
def test_shares_out_of_range_are_refused(given, traced):
    with pytest.raises(AnalysisError, match="use 0 <= margin < 1 and 0 < within < 1"):
        sink_aware_patching(traced("gpt2"), make_task("subject_verb", n=8), **given)
