"""Head patching against transformer_lens' own, against planted heads, and against loops written out."""

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FAMILIES
from transformer_lens import patching
from transformers import AutoModelForCausalLM

from workbench import store
from workbench.analyses import AnalysisError, head_patching
from workbench.analyses._base import resamples
from workbench.models.load import load, wrap
from workbench.tasks import Task, make_task

HEADS, SIZE = 4, 8  # of the tiny models


def metric_of(prompts, rows):
    """The logit difference of each row, as a transformer_lens metric."""

    def metric(logits):
        last = logits[:, -1]
        pairs = zip(last, rows, strict=True)
        return torch.stack([row[prompts.answers[i]].mean() - row[prompts.wrongs[i]].mean() for row, i in pairs])

    return metric


def oracle(model, task, patch):
    """Patched metrics [prompt, ...] by transformer_lens, one prompt length at a time."""
    prompts, found = task.encode(model.tokenizer, bos=model.bos), {}
    for length in set(prompts.lengths.tolist()):
        rows = np.flatnonzero(prompts.lengths == length)
        clean, corrupted = (
            torch.tensor(np.stack([side[i] for i in rows])) for side in (prompts.clean, prompts.corrupted)
        )
        with torch.inference_mode():
            _, cache = model.bridge.run_with_cache(clean)
            result = patch(model.bridge, corrupted, cache, metric_of(prompts, rows), reduce="none")
        for place, row in enumerate(rows):
            found[row] = result.values[..., place].numpy()
    return np.stack([found[row] for row in range(len(prompts))])


def normalised(patched, ds):
    """The effect: the share of the mean gap between clean and corrupted that patching closes."""
    clean, corrupted = ds["metric_clean"].values.mean(), ds["metric_corrupted"].values.mean()
    return (patched.mean(0) - corrupted) / (clean - corrupted)


@pytest.mark.parametrize("batch", [5, 64])
def test_all_positions_equal_transformer_lens(batch, traced):
    model, task = traced("gpt2"), make_task("ioi", n=12)
    ds = head_patching(model, task, draws=10, batch=batch)
    expected = oracle(model, task, patching.get_act_patch_attn_head_out_all_pos)
    np.testing.assert_allclose(ds["metric"].values, expected, atol=1e-5)
    np.testing.assert_allclose(ds["effect"].values, normalised(expected, ds), atol=1e-5)


def test_all_positions_equal_transformer_lens_in_a_trained_model(zoo_model):
    task = make_task("ioi", n=12, corruption="value_swap")
    ds = head_patching(zoo_model, task, draws=10)
    expected = oracle(zoo_model, task, patching.get_act_patch_attn_head_out_all_pos)
    np.testing.assert_allclose(ds["effect"].values, normalised(expected, ds), atol=1e-5)


@pytest.mark.parametrize("which", ["tiny", "zoo"])
def test_each_position_equals_transformer_lens(which, traced, zoo_model):
    model, task = traced("gpt2") if which == "tiny" else zoo_model, make_task("subject_verb", n=10)
    ds = head_patching(model, task, positions="each", draws=10)
    expected = oracle(model, task, patching.get_act_patch_attn_head_out_by_pos).transpose(0, 2, 1, 3)
    assert ds["effect"].dims == ("pos", "layer", "head")
    np.testing.assert_allclose(ds["effect"].values, normalised(expected, ds), atol=1e-5)


def test_grouped_query_heads_are_patched_one_by_one(traced):
    model, task = traced("llama"), make_task("subject_verb", n=8)
    ds = head_patching(model, task, draws=10)
    expected = oracle(model, task, patching.get_act_patch_attn_head_out_all_pos)
    np.testing.assert_allclose(ds["effect"].values, normalised(expected, ds), atol=1e-5)


def planted(fresh, words, *, keep, strength=1.0):
    """A GPT-2 in which only the heads in `keep`, as (layer, head) -> factor, write anything, `factor` times as much."""
    module = fresh("gpt2")
    with torch.no_grad():
        for layer, block in enumerate(module.transformer.h):
            block.attn.c_proj.bias.zero_()
            for head in range(HEADS):
                rows = slice(head * SIZE, (head + 1) * SIZE)
                block.attn.c_proj.weight[rows] *= strength * keep.get((layer, head), 0.0)
    return module, (lambda: wrap(module, words, override=True))  # edits in an empty first layer move nothing


def test_the_one_head_that_moves_anything_has_effect_one(fresh, words):
    """The corrupted word is not the last one, so only this head can bring it to the answer."""
    _, model = planted(fresh, words, keep={(1, 2): 1.0})
    ds = head_patching(model(), make_task("subject_verb", n=16))
    expected = np.zeros((2, HEADS))
    expected[1, 2] = 1
    for name in ("effect", "effect_low", "effect_high"):
        np.testing.assert_allclose(ds[name].values, expected, atol=1e-5)


def test_the_one_head_acts_at_the_last_position_only(fresh, words):
    _, model = planted(fresh, words, keep={(1, 2): 1.0})
    ds = head_patching(model(), make_task("subject_verb", n=8), positions="each", draws=10)
    last = len(ds["pos"]) - 1
    expected = np.zeros(ds["effect"].shape)
    expected[last, 1, 2] = 1
    np.testing.assert_allclose(ds["effect"].values, expected, atol=1e-5)


def test_effects_are_not_clipped(fresh, words):
    """Two heads read the same; one writes twice what the other takes away: 2 and -1 of what is left."""
    module, model = planted(fresh, words, keep={(1, 0): 1.0, (1, 1): 1.0}, strength=0.02)
    attention = module.transformer.h[1].attn
    with torch.no_grad():
        for part in range(3):  # queries, keys, values lie side by side
            first = slice(part * 32, part * 32 + SIZE)
            second = slice(part * 32 + SIZE, part * 32 + 2 * SIZE)
            attention.c_attn.weight[:, second] = attention.c_attn.weight[:, first]
            attention.c_attn.bias[second] = attention.c_attn.bias[first]
        attention.c_proj.weight[SIZE : 2 * SIZE] = -0.5 * attention.c_proj.weight[:SIZE]
    effect = head_patching(model(), make_task("subject_verb", n=16))["effect"].values
    np.testing.assert_allclose(effect[1, :2], [2.0, -1.0], atol=0.05)


def test_a_corruption_that_changes_nothing_is_refused(fresh, words):
    _, model = planted(fresh, words, keep={})
    with pytest.raises(AnalysisError, match=r"'number' leaves the metric of 'subject_verb' as it is"):
        head_patching(model(), make_task("subject_verb", n=8))


def test_the_interval_is_the_bootstrap_written_out(traced):
    task = make_task("ioi", n=9, seed=7)
    ds = head_patching(traced("gpt2"), task, draws=50)
    gap = (ds["metric_clean"] - ds["metric_corrupted"]).values
    gain = (ds["metric"] - ds["metric_corrupted"]).transpose("prompt", "layer", "head").values
    for layer in range(2):
        for head in range(HEADS):
            samples = []
            for weights in resamples(9, 50, seed=7):
                drawn = np.repeat(np.arange(9), np.rint(weights * 9).astype(int))
                assert len(drawn) == 9
                samples.append(gain[drawn, layer, head].sum() / gap[drawn].sum())
            low, high = np.quantile(samples, [0.025, 0.975])
            np.testing.assert_allclose(ds["effect_low"].values[layer, head], low, atol=1e-9)
            np.testing.assert_allclose(ds["effect_high"].values[layer, head], high, atol=1e-9)


def test_the_interval_holds_the_estimate_and_shrinks_with_more_prompts(zoo_model):
    widths = []
    for n in (16, 128):
        ds = head_patching(zoo_model, make_task("subject_verb", n=n))
        assert (ds["effect_low"] <= ds["effect"]).all() and (ds["effect"] <= ds["effect_high"]).all()
        widths.append(float((ds["effect_high"] - ds["effect_low"]).mean()))
    assert widths[1] < 0.6 * widths[0]  # 8 times the prompts: about a third


def test_named_positions_are_those_of_the_prompts(traced, tmp_path):
    task, model = make_task("subject_verb", n=8), traced("gpt2")
    named, each = (head_patching(model, task, positions=p, draws=10) for p in ("named", "each"))
    assert named["pos"].values.tolist() == ["subject", "END", "attractor"]  # by place, then by name
    for name, index in (("subject", 2), ("attractor", 5), ("END", 5)):  # BOS shifts every word by one
        np.testing.assert_allclose(named["effect"].sel(pos=name), each["effect"].sel(pos=index), atol=1e-6)
    for ds in (named, each):
        xr.testing.assert_equal(store.load(store.save(ds, tmp_path / "result.nc")), ds)


def test_named_positions_may_differ_from_prompt_to_prompt(traced):
    task, model = make_task("ioi", n=10, corruption="value_swap"), traced("gpt2")
    named = head_patching(model, task, positions="named", draws=10)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    assert len({marks["IO"] for marks in prompts.positions}) > 1
    name = "blocks.0.attn.hook_z"
    for row in range(len(prompts)):
        at = prompts.positions[row]["IO"]
        _, kept = model.capture(prompts.clean[row][None], [name])

        def edit(value, at=at, kept=kept):
            value = value.clone()
            value[0, at, 3] = kept[name][0, at, 3]
            return value

        last = model.logits(prompts.corrupted[row][None], {name: edit})[0, -1]
        expected = (last[prompts.answers[row]].mean() - last[prompts.wrongs[row]].mean()).item()
        found = named["metric"].sel(prompt=row, pos="IO", layer=0, head=3).item()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_each_position_needs_one_length(traced):
    with pytest.raises(AnalysisError, match="positions='named'"):
        head_patching(traced("gpt2"), make_task("ioi", n=16), positions="each")


def test_the_probability_difference_is_that_of_plain_transformers(traced, saved):
    task, model = make_task("greater_than", n=8), traced("gpt2")
    ds, prompts = head_patching(model, task, draws=10), task.encode(model.tokenizer, bos=model.bos)
    module = AutoModelForCausalLM.from_pretrained(saved("gpt2")).eval()
    for name, side in (("metric_clean", prompts.clean), ("metric_corrupted", prompts.corrupted)):
        with torch.inference_mode():
            probabilities = [module(torch.tensor(ids)[None]).logits[0, -1].softmax(-1).numpy() for ids in side]
        expected = [
            p[a].sum() - p[w].sum() for p, a, w in zip(probabilities, prompts.answers, prompts.wrongs, strict=True)
        ]
        np.testing.assert_allclose(ds[name].values, expected, atol=1e-6)
    assert ds.attrs["metric_name"] == "prob_diff"


def test_answers_given_as_lists_are_averaged(traced):
    rows = [
        {"clean": f"{a} saw the {n}", "corrupted": f"{b} saw the {n}", "answer": [" is", " are"], "wrong": " was"}
        for n in ("key", "boy", "girl", "cat")
        for a, b in (("Mary", "John"), ("Tom", "Dan"))
    ]
    task, model = Task.from_records(rows), traced("gpt2")
    ds, prompts = head_patching(model, task, draws=10), task.encode(model.tokenizer, bos=True)
    vocabulary = model.tokenizer.get_vocab()
    for row, ids in enumerate(prompts.clean):
        last = model.logits(ids[None])[0, -1]
        right = (last[vocabulary["is"]] + last[vocabulary["are"]]) / 2
        np.testing.assert_allclose(ds["metric_clean"].values[row], (right - last[vocabulary["was"]]).item(), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["all", "named"])
def test_the_fast_way_gives_the_numbers_of_plain_hooks(family, positions, saved):
    task, found = make_task("ioi", n=10, corruption="value_swap"), []
    for plainly in (False, True):
        model = load(saved(family), device="cpu")
        if plainly:
            model.__dict__.update(trunk=None, _trunk_or_reason="hooks were asked for")
        found.append(head_patching(model, task, positions=positions, draws=10))
    assert "recomputed only where" in found[0].attrs["way"] and "hooks were asked for" in found[1].attrs["way"]
    np.testing.assert_allclose(found[0]["metric"].values, found[1]["metric"].values, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_half_precision_gives_roughly_the_same(family, saved):
    task = make_task("ioi", n=8, corruption="value_swap")
    effects = [head_patching(load(saved(family), dtype=d), task, draws=10) for d in ("float32", "bfloat16")]
    gap = abs(effects[0]["metric"] - effects[1]["metric"]).max()
    assert float(gap) < 0.15 * float(abs(effects[0]["metric"]).max())
