"""Attention of one text and of many, against whole patterns of plain transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.analyses import AnalysisError, attention, mean_attention
from workbench.tasks import make_task

both = pytest.mark.parametrize("family", ["gpt2", "llama"])


def task():
    return make_task("ioi", n=8)


def patterns(folder, tokens):
    """[row, layer, head, query, key] by plain transformers, eager."""
    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        found = module(torch.from_numpy(tokens), output_attentions=True).attentions
    return torch.stack(found, 1).numpy()


@both
def test_attention_is_that_of_plain_transformers(family, traced, saved):
    model = traced(family)
    ds = attention(model, task(), prompt=3)
    tokens = task().encode(model.tokenizer, bos=True).clean[3]
    np.testing.assert_allclose(ds["pattern"], patterns(saved(family), tokens[None])[0], atol=1e-6)
    assert ds["token"].values.tolist() == ["<bos>", *ds.attrs["text"].split()]
    assert ds.attrs["causal"] == 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_scores_give_the_pattern_by_a_softmax(family, traced):
    ds = attention(traced(family), task(), length=20, scores=True)
    assert ds.sizes["key_pos"] == ds.sizes["query_pos"] == 20
    seen = np.tril(np.ones((20, 20), dtype=bool))
    assert not ds["score"].values[..., ~seen].any()
    weights = np.where(seen, np.exp(ds["score"].values), 0)
    np.testing.assert_allclose(weights / weights.sum(-1, keepdims=True), ds["pattern"], atol=1e-5)


def test_one_layer_of_a_text_is_that_layer_of_all(traced):
    model = traced("gpt2")
    whole = attention(model, task(), length=30, prompt=1, scores=True)
    part = attention(model, task(), length=30, prompt=1, layer=1, scores=True)
    assert part["layer"].values.tolist() == [1]
    np.testing.assert_array_equal(part["pattern"][0], whole["pattern"][1])
    np.testing.assert_array_equal(part["score"][0], whole["score"][1])
    documents = task().documents(model.tokenizer, length=30, count=2, bos=True)
    assert part["token"].values.tolist() == model.tokens(documents[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": -1}, "has the prompts 0 to 7"),
        ({"prompt": 8}, "has the prompts 0 to 7"),
        ({"layer": 2}, "layer is 2; this model has the layers 0 to 1, or -1 for all"),
        ({"length": 1}, "length is 1 and prompt 0; this model takes 2 to 128"),
        ({"length": 129}, "length is 129"),
    ],
)
def test_a_text_or_layer_that_is_not_there_is_refused(given, message, traced):
    with pytest.raises(AnalysisError, match=message):
        attention(traced("gpt2"), task(), **given)


def test_a_result_too_large_to_keep_asks_for_one_layer(traced, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["workbench.analyses.attention"], "LARGEST", 4000)
    with pytest.raises(AnalysisError, match=r"2 layers on 30 tokens are 7,200 values; name one layer"):
        attention(traced("gpt2"), task(), length=30)
    attention(traced("gpt2"), task(), length=30, layer=0)


@both
def test_a_mean_is_that_of_every_text(family, traced, saved):
    model = traced(family)
    ds = mean_attention(model, task(), length=9, sequences=5, batch=2)
    tokens = task().documents(model.tokenizer, length=9, count=5, bos=True)
    each = patterns(saved(family), tokens)
    np.testing.assert_allclose(ds["pattern"], each.mean(0), atol=1e-6)
    np.testing.assert_allclose(ds["pattern_sd"], each.std(0), atol=1e-5)
    np.testing.assert_allclose(ds["first_prompt"], each[..., 0].mean(-1), atol=1e-6)
    assert ds.attrs["n"] == 5 and not np.triu(ds["score"][0, 0], 1).any()
    scores = []
    for row in range(5):
        heads = []
        model.scanner.run(model.tensor(tokens[row : row + 1]), heads=heads.append)
        scores.append(
            [part.queries[0] @ part.keys[0].repeat_interleave(4 // len(part.keys[0]), 0).mT for part in heads]
        )
    by_hand = np.mean([[layer.numpy() for layer in row] for row in scores], 0) / 8**0.5
    np.testing.assert_allclose(ds["score"], np.tril(by_hand), atol=1e-4)


def test_a_mean_over_long_texts_is_refused(traced):
    with pytest.raises(AnalysisError, match="length is 129; averages are taken over 2 to 128"):
        mean_attention(traced("gpt2"), task(), length=129)
