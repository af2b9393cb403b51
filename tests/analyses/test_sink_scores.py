"""Sink scores against loops over the full attention of plain transformers, and against planted patterns."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.analyses import AnalysisError, sink_scores
from workbench.analyses.sink_scores import uniform_alpha
from workbench.models.load import wrap
from workbench.tasks import make_task

LENGTH, ROWS, EPSILON = 14, 5, 0.15
SMALL = {"length": LENGTH, "sequences": ROWS, "epsilon": EPSILON, "batch": 2}


def task():
    return make_task("ioi", n=8)


def observed(folder, family, tokens):
    """By layer: attention [row, head, query, key], values [row, key, kv head, size], residuals [row, key, width]."""
    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    values, residuals = [], []
    if family == "gpt2":
        blocks = module.transformer.h
        sources = [block.attn.c_attn for block in blocks]
        kept_heads = 4
    else:
        blocks = module.model.layers
        sources = [block.self_attn.v_proj for block in blocks]
        kept_heads = 2

    def keep_values(part, given, found):
        own = found[..., -32:] if family == "gpt2" else found  # GPT-2's last third
        values.append(own.unflatten(-1, (kept_heads, 8)))

    def keep_residual(part, given, found):
        residuals.append(found[0] if isinstance(found, tuple) else found)

    for block, source in zip(blocks, sources, strict=True):
        source.register_forward_hook(keep_values)
        block.register_forward_hook(keep_residual)
    with torch.inference_mode():
        patterns = module(torch.from_numpy(tokens), output_attentions=True).attentions
    return ([part.double().numpy() for part in parts] for parts in (patterns, values, residuals))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_score_equals_its_definition_written_out(family, traced, saved):
    model = traced(family)
    ds = sink_scores(model, task(), **SMALL)
    tokens = task().documents(model.tokenizer, length=LENGTH, count=ROWS, bos=True)
    patterns, values, residuals = observed(saved(family), family, tokens)
    single = np.zeros((ROWS, 2, 4, LENGTH))
    for row in range(ROWS):
        for layer in range(2):
            for head in range(4):
                for key in range(LENGTH):
                    seen = [patterns[layer][row, head, query, key] for query in range(key, LENGTH)]
                    single[row, layer, head, key] = sum(seen) / (LENGTH - key)
    np.testing.assert_allclose(ds["alpha_prompt"], single, atol=1e-6)
    np.testing.assert_allclose(ds["alpha"], single.mean(0), atol=1e-6)
    rate = np.zeros((2, 4, LENGTH))
    for where in np.ndindex(rate.shape):
        rate[where] = sum(single[(row, *where)] > EPSILON for row in range(ROWS)) / ROWS
    assert 0 < rate.mean() < 1
    np.testing.assert_allclose(ds["sink_rate"], rate, atol=1e-12)
    np.testing.assert_allclose(ds["sink_rate_mean"], rate.mean((0, 1)), atol=1e-12)
    group = 4 // values[0].shape[2]
    for layer in range(2):
        relative = []
        for row in range(ROWS):
            norms = [np.sqrt((residuals[layer][row, key] ** 2).sum()) for key in range(LENGTH)]
            relative.append(np.array(norms) / np.median(norms))
        np.testing.assert_allclose(ds["residual_norm"].values[layer], np.mean(relative, 0), atol=1e-5)
        for head in range(4):
            relative = []
            for row in range(ROWS):
                norms = np.linalg.norm(values[layer][row, :, head // group], axis=-1)
                relative.append(norms / np.median(norms))
            np.testing.assert_allclose(ds["value_norm"].values[layer, head], np.mean(relative, 0), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_uniform_alpha_is_the_double_sum(length):
    expected = [sum(1 / (query + 1) for query in range(key, length)) / (length - key) for key in range(length)]
    np.testing.assert_allclose(uniform_alpha(length), expected, rtol=1e-12)


def blind(fresh):
    """A GPT-2 whose blocks write nothing, so that every layer sees the embeddings."""
    module = fresh("gpt2")
    with torch.no_grad():
        for block in module.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
            block.attn.c_attn.weight[:, :64].zero_()
            block.attn.c_attn.bias.zero_()
    return module


def test_without_queries_attention_is_uniform(fresh, words):
    ds = sink_scores(wrap(blind(fresh), words, override=True), task(), **SMALL)
    expected = np.broadcast_to(uniform_alpha(LENGTH), ds["alpha"].shape)
    np.testing.assert_allclose(ds["alpha"], expected, atol=1e-6)
    np.testing.assert_allclose(ds["alpha_null"], uniform_alpha(LENGTH), rtol=1e-12)


def test_a_planted_sink_takes_all_attention(fresh, words):
    """Position 0 alone is large along one axis; keys read this axis and queries are constant."""
    module = blind(fresh)
    with torch.no_grad():
        module.transformer.wte.weight[:, 0] = 0
        module.transformer.wpe.weight[:, 0] = 0
        module.transformer.wpe.weight[0, 0] = 1000
        for block in module.transformer.h:
            block.attn.c_attn.bias[:32] = 10
            block.attn.c_attn.weight[0, 32:64] = 100
    ds = sink_scores(wrap(module, words, override=True), task(), **SMALL)
    expected = np.zeros((2, 4, LENGTH))
    expected[..., 0] = 1
    np.testing.assert_allclose(ds["alpha"], expected, atol=1e-6)
    np.testing.assert_array_equal(ds["sink_rate"], expected)
    for name in ("sink_rate_mean", "sink_rate_mean_low", "sink_rate_mean_high"):
        np.testing.assert_array_equal(ds[name], expected[0, 0])
    assert (ds["residual_norm"].sel(key_pos=0) > 100).all()


def test_the_interval_of_alpha_holds_its_mean(traced):
    ds = sink_scores(traced("gpt2"), task(), **SMALL)
    assert (ds["alpha_low"] <= ds["alpha"] + 1e-12).all() and (ds["alpha"] <= ds["alpha_high"] + 1e-12).all()


def test_a_stopped_run_is_the_first_sequences(traced):
    from workbench.progress import reporting

    model, whole = traced("gpt2"), sink_scores(traced("gpt2"), task(), **SMALL)
    with reporting(lambda what, done, total: done < 1):
        part = sink_scores(model, task(), **SMALL)
    assert part.sizes["prompt"] == part.attrs["n"] == 2
    np.testing.assert_array_equal(part["alpha_prompt"], whole["alpha_prompt"][:2])
    np.testing.assert_allclose(part["alpha"], whole["alpha_prompt"][:2].mean("prompt"), atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 129, -3])
def test_a_length_the_model_cannot_take_is_refused(length, traced):
    with pytest.raises(AnalysisError, match=rf"length is {length}; this model takes 2 to 128"):
        sink_scores(traced("gpt2"), task(), length=length)


@pytest.mark.parametrize("epsilon", [0, 1, -0.1, 3, float("nan"), "much"])
def test_a_threshold_outside_the_range_is_refused(epsilon, traced):
    with pytest.raises(AnalysisError, match="epsilon is"):
        sink_scores(traced("gpt2"), task(), epsilon=epsilon)
