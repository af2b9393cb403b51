"""Dormant heads against loops over plain transformers, and against heads whose rest and use were planted."""

import numpy as np
import pytest
import torch
import xarray as xr
from plain_heads import HEADS, Plain, mixed
from planted_heads import ANSWER, BOS, A, blank, names, normed, set_head

from workbench.analyses import AnalysisError, dormant_heads, sink_scores
from workbench.analyses.dormant_heads import _elsewhere, _state
from workbench.models.load import load, wrap
from workbench.tasks import make_task
from workbench.tasks._lexicon import LETTERS
from workbench.tasks.backcopy import TRIGGERS

LENGTH, ROWS = 12, 5
SMALL = {"length": LENGTH, "sequences": ROWS, "draws": 30, "batch": 3}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_number_equals_its_definition_written_out(family, traced, saved):
    model, task, plain = traced(family), make_task("subject_verb", n=9), Plain(saved(family), family)
    ds = dormant_heads(model, task, **SMALL, position="subject")
    tokens = task.documents(model.tokenizer, length=LENGTH, count=ROWS, bos=True)
    patterns, values = plain.seen(tokens)
    norms = np.zeros((2, HEADS, ROWS))
    for layer, head in np.ndindex(2, HEADS):
        at = {"layer": layer, "head": head}
        found = [np.mean([patterns[layer, row, head, i, 0] for i in range(LENGTH)]) for row in range(ROWS)]
        np.testing.assert_allclose(ds["dormancy"].sel(at), np.mean(found), atol=1e-6)
        sizes = np.linalg.norm(values[layer, :, :, head], axis=-1)
        drain = [sizes[row, 0] / np.median(sizes[row]) for row in range(ROWS)]
        np.testing.assert_allclose(ds["value_drain"].sel(at), np.mean(drain), rtol=1e-5)
        written = mixed(patterns[layer], values[layer])[:, :, head] @ _output(plain, layer, head)
        norms[layer, head] = np.linalg.norm(written, axis=-1).mean(1)
    expected = (norms / np.median(norms, axis=(0, 1))).mean(-1)
    np.testing.assert_allclose(ds["output_norm"], expected, rtol=1e-5)
    np.testing.assert_allclose(ds["dormancy_null"], np.mean([1 / (i + 1) for i in range(LENGTH)]), rtol=1e-12)
    prompts = task.encode(model.tokenizer, bos=True)
    place = prompts.positions[0]["subject"]
    attention, _ = plain.seen(np.stack(prompts.clean))
    np.testing.assert_allclose(ds["dormancy_at"], attention[:, :, :, place, 0].mean(1), atol=1e-6)
    np.testing.assert_allclose(ds["dormancy_at_null"], 1 / (place + 1), rtol=1e-12)


def _output(plain, layer, head):
    return plain.written[layer].detach().double().numpy().reshape(HEADS, -1, 32)[head]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_ablation_equals_plain_transformers_with_the_mean_written_in(family, traced, saved):
    model, task, plain = traced(family), make_task("subject_verb", n=9), Plain(saved(family), family)
    ds, prompts = dormant_heads(model, task, **SMALL), task.encode(model.tokenizer, bos=True)
    clean, corrupted = np.stack(prompts.clean), np.stack(prompts.corrupted)
    patterns, values = plain.seen(clean)
    before, floor = (plain.metric(side, prompts.answers, prompts.wrongs) for side in (clean, corrupted))
    for layer, head in np.ndindex(2, HEADS):
        z = mixed(patterns[layer], values[layer])[:, :, head]
        instead = np.broadcast_to(z.mean((0, 1)), z.shape).copy()
        after = plain.metric(clean, prompts.answers, prompts.wrongs, layer, head, instead)
        at = {"layer": layer, "head": head}
        np.testing.assert_allclose(ds["metric"].sel(at), after, atol=1e-5)
        expected = (before - after).mean() / (before - floor).mean()
        np.testing.assert_allclose(ds["lost"].sel(at), expected, atol=1e-5)


def test_d_is_the_alpha_of_the_first_key(traced):
    model, task = traced("llama"), make_task("ioi", n=8)
    ds = dormant_heads(model, task, **SMALL)
    alpha = sink_scores(model, task, length=LENGTH, sequences=ROWS, batch=3)["alpha"].sel(key_pos=0)
    np.testing.assert_allclose(ds["dormancy"], alpha, atol=1e-6)


def test_the_null_moves_as_far_in_another_direction():
    z, mean = torch.randn(3, 5, 4, 8), torch.randn(4, 8)
    other = _elsewhere(z, mean, np.random.default_rng(0))
    distance = (mean - z).norm(dim=-1)
    np.testing.assert_allclose((other - z).norm(dim=-1), distance, rtol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(other - z, mean - z, dim=-1)
    assert abs(cosine.mean()) < 0.2 and cosine.abs().max() < 0.99


def planted(fresh, words):
    """Head 0 of the second layer rests on BOS with the same value always; head 1 says what the first word is."""
    module = blank(fresh, words)
    block = module.transformer.h[1]
    set_head(block, 0, key={BOS: 1.0}, constant=0.5)
    set_head(block, 1, key={A: 2.0}, query=0.0, value={A: 1.0})
    return module


def test_a_planted_dormant_head_has_its_closed_form_and_loses_nothing(fresh, words):
    module, task = planted(fresh, words), names("Mary", "John", "a", both=True)
    ds = dormant_heads(wrap(module, words, override=True), task, length=20, sequences=4, draws=50)
    score = normed(module, words.bos_token_id, 0)[BOS]
    expected = np.mean([np.exp(score) / (np.exp(score) + i) for i in range(20)])
    resting = ds.sel(layer=1, head=0)
    assert expected > 0.8 and float(ds["dormancy_null"]) < 0.2
    for name in ("dormancy", "dormancy_low", "dormancy_high"):
        np.testing.assert_allclose(resting[name], expected, atol=1e-6)
    last = task.encode(words, bos=True).lengths[0]
    np.testing.assert_allclose(resting["dormancy_at"], np.exp(score) / (np.exp(score) + last - 1), atol=1e-6)
    np.testing.assert_allclose([resting[f"lost{end}"] for end in ("", "_low", "_high")], 0, atol=1e-6)
    assert resting["state"] == 1
    speaking = ds.sel(layer=1, head=1)
    assert speaking["state"] == 2 and speaking["lost_low"] > 0.3
    assert (ds["state"].sel(layer=0) == 3).all(), "heads that write nothing and rest nowhere"
    np.testing.assert_allclose(speaking["dormancy"], ds["dormancy_null"], atol=1e-6)
    assert abs(ds["lost"].sel(layer=0)).max() < 1e-6 and ds["output_norm"].sel(layer=0).max() == 0


def test_a_head_that_wakes_at_triggers_only_is_seen_at_the_end(fresh, words):
    """Queries of the triggers turn the score of BOS around; a backcopy prompt ends in one of them."""
    module = blank(fresh, words)
    with torch.no_grad():
        for word in TRIGGERS:
            module.transformer.wte.weight[words.get_vocab()[word], A : A + 2] = torch.tensor([2.0, -2.0])
    set_head(module.transformer.h[1], 0, key={BOS: 2.0}, query_reads={A: -2.0}, constant=0.5)
    set_head(module.transformer.h[1], 1, query=0.0, value=dict.fromkeys(range(8, 16), 1.0))
    rows = make_task("backcopy", n=12)
    for index, letter in enumerate(LETTERS):  # so that what head 1 writes tells them apart
        module.transformer.wte.weight.data[words.get_vocab()[letter], ANSWER] += index
    ds = dormant_heads(wrap(module, words, override=True), rows, length=40, sequences=6, draws=20)
    waking = ds.sel(layer=1, head=0)
    assert waking["dormancy"] > 0.6 and waking["dormancy_at"] < 1e-3 < float(ds["dormancy_at_null"])
    assert waking["dormancy_at_high"] < waking["dormancy_low"]


def test_a_state_is_told_from_interval_limit_and_d():
    rows = [  # low, high, null's ends, D -> limit, state
        (-0.01, 0.01, -0.005, 0.005, 0.9, 0.02, 1),
        (-0.01, 0.01, -0.005, 0.005, 0.1, 0.02, 3),
        (0.03, 0.05, -0.005, 0.005, 0.9, 0.02, 2),
        (-0.05, -0.03, -0.005, 0.005, 0.1, 0.02, 2),
        (0.03, 0.05, -0.005, 0.06, 0.9, 0.06, 1),
        (0.03, 0.05, -0.04, 0.01, 0.9, 0.04, 0),
        (0.01, 0.03, 0.0, 0.0, 0.9, 0.02, 0),
    ]
    columns = ("lost_low", "lost_high", "lost_null_low", "lost_null_high", "dormancy")
    ds = xr.Dataset({name: (("layer", "head"), [[row[i] for row in rows]]) for i, name in enumerate(columns)})
    found = _state(ds, 0.3, 0.02)
    np.testing.assert_allclose(found["limit"][1][0], [row[5] for row in rows])
    assert found["state"][1][0].tolist() == [row[6] for row in rows]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_the_fast_way_gives_the_numbers_of_plain_hooks(family, saved):
    task, found = make_task("ioi", n=9, corruption="value_swap"), []
    for plainly in (False, True):
        model = load(saved(family), device="cpu")
        if plainly:
            model.__dict__.update(trunk=None, _trunk_or_reason="hooks were asked for")
        found.append(dormant_heads(model, task, **SMALL))
    assert "recomputed only where" in found[0].attrs["way"] and "hooks were asked for" in found[1].attrs["way"]
    for name in ("metric", "lost_null", "dormancy"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-4)


def test_random_heads_do_not_rest(traced):
    ds = dormant_heads(traced("gpt2"), make_task("subject_verb", n=16), length=64, sequences=8, draws=50, epsilon=0.5)
    assert not (ds["state"] == 1).any() and (ds["dormancy"] < 0.5).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"length": 129}, "length is 129; this model takes 2 to 128"),
        ({"epsilon": 1}, "epsilon is 1"),
        ({"margin": -0.1}, "margin -0.1"),
        ({"position": "S2"}, "no position 'S2'; they have: all, subject"),
        ({"position": "all"}, "position is 'all'"),
    ],
)
def test_what_cannot_be_is_refused(given, said, traced):
    with pytest.raises(AnalysisError, match=said):
        dormant_heads(traced("gpt2"), make_task("subject_verb", n=8), **given)
