"""Sink scores against loops over the full attention of plain transformers, and against planted patterns."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.analyses import AnalysisError, sink_scores
from workbench.analyses._tokens import FEW, KINDS, kinds_of
from workbench.analyses.sink_scores import measure, uniform_alpha
from workbench.models.load import wrap
from workbench.parameters import ParameterError
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
    with pytest.raises((AnalysisError, ParameterError), match="epsilon is"):
        sink_scores(traced("gpt2"), task(), epsilon=epsilon)


def keys_and_queries(folder, family, tokens):
    """By layer: queries and keys [row, head, pos, size] after rotation, and norms of z W_O [row, pos, head]."""
    from transformers.models.llama import modeling_llama

    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    seen, written = [], []
    if family == "gpt2":
        blocks, take = module.transformer.h, lambda block: (block.attn.c_attn, block.attn.c_proj)
    else:
        blocks, take = module.model.layers, lambda block: (block.self_attn, block.self_attn.o_proj)
    for block in blocks:
        source, output = take(block)

        def keep(part, given, found):
            if family == "gpt2":
                query, key, _ = found.unflatten(-1, (12, 8)).transpose(1, 2).chunk(3, 1)
                seen.append((query, key))

        def rotate(part, given, kwargs):
            if family != "gpt2":
                hidden, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
                query = part.q_proj(hidden).unflatten(-1, (4, 8)).transpose(1, 2)
                key = part.k_proj(hidden).unflatten(-1, (2, 8)).transpose(1, 2)
                query, key = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin)
                seen.append((query, key.repeat_interleave(2, 1)))

        def norms(part, given, weight=output.weight if family == "gpt2" else output.weight.T):
            z = given[0].unflatten(-1, (4, 8))
            written.append(torch.stack([z[:, :, h] @ weight[8 * h : 8 * h + 8] for h in range(4)], 2).norm(dim=-1))

        source.register_forward_hook(keep)
        source.register_forward_pre_hook(rotate, with_kwargs=True)
        output.register_forward_pre_hook(norms)
    with torch.inference_mode():
        module(torch.from_numpy(tokens))
    return [(q.numpy(), k.numpy()) for q, k in seen], [norm.numpy() for norm in written]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_companions_of_a_sink_equal_their_definitions(family, traced, saved):
    """Key norms, query-key cosines and head output norms, key by key."""
    model = traced(family)
    ds = sink_scores(model, task(), **SMALL)
    tokens = task().documents(model.tokenizer, length=LENGTH, count=ROWS, bos=True)
    heads, written = keys_and_queries(saved(family), family, tokens)
    for layer, head in np.ndindex(2, 4):
        query, key = (part[:, head].astype(float) for part in heads[layer])
        norms = np.linalg.norm(key, axis=-1)
        expected = (norms / np.median(norms, axis=-1, keepdims=True)).mean(0)
        np.testing.assert_allclose(ds["key_norm"].values[layer, head], expected, atol=1e-5)
        for at in range(LENGTH):
            each = [
                query[row, i] @ key[row, at] / np.linalg.norm(query[row, i]) / norms[row, at]
                for row in range(ROWS)
                for i in range(at, LENGTH)
            ]
            np.testing.assert_allclose(ds["query_key_cosine"].values[layer, head, at], np.mean(each), atol=1e-5)
        np.testing.assert_allclose(ds["output_norm"].values[layer, head], written[layer][..., head].mean(), rtol=1e-5)


def test_kinds_of_tokens_are_told_apart(traced, bpe):
    from types import SimpleNamespace

    texts = {"<|endoftext|>": "BOS", ".": "delimiter", ",": "delimiter", "\n": "whitespace", " ": "whitespace"}
    texts |= {"17": "digit", " the": "content", "b": "content", "'": "delimiter", " 17": "digit"}
    ids = [bpe(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert all(len(one) == 1 for one in ids)
    kinds = kinds_of(SimpleNamespace(tokenizer=bpe), np.array([one[0] for one in ids]))
    assert dict(zip(texts, (KINDS[kind] for kind in kinds), strict=True)) == texts


def test_alpha_by_kind_is_the_mean_over_its_tokens(traced):
    ds = sink_scores(traced("gpt2"), task(), length=40, sequences=6, batch=4)
    early = 40 - FEW + 1
    for kind in ds["component"].values:
        here = (ds["kind"].values == kind)[:, :early]
        values = np.moveaxis(ds["alpha_prompt"].values[..., :early], -1, 1)[here]
        np.testing.assert_allclose(ds["kind_alpha"].sel(component=kind), values.mean(0), rtol=1e-5)
        null = np.broadcast_to(ds["alpha_null"].values[:early], here.shape)[here].mean()
        np.testing.assert_allclose(ds["kind_alpha_null"].sel(component=kind), null, rtol=1e-6)
        assert (ds["kind_alpha_low"] <= ds["kind_alpha"] + 1e-9).all()
    assert ds["component"].values.tolist() == ["BOS", "delimiter", "content"]
    assert float(ds["kind_share"].sum()) == pytest.approx(1)


def test_random_tokens_and_one_repeated_token_stand_beside_the_text(traced):
    ds = sink_scores(traced("gpt2"), task(), **SMALL)
    assert ds["measured"].values.tolist() == ["text", "random tokens", "one repeated token"]
    np.testing.assert_allclose(ds["control_alpha"][0], ds["alpha"].sel(key_pos=0), rtol=1e-6)
    np.testing.assert_allclose(ds["control_rate"][0], ds["sink_rate"].sel(key_pos=0).mean())


def test_one_repeated_token_has_no_sink_without_learned_positions(fresh, words):
    """Rotation alone cannot tell equal tokens apart by their values: every z is the same, whatever the attention."""
    ds = sink_scores(wrap(blind_llama(fresh), words, override=True), task(), **SMALL)
    uniform = uniform_alpha(LENGTH)[0]
    np.testing.assert_allclose(ds["control_alpha"].sel(measured="one repeated token"), uniform, atol=1e-5)
    assert abs(ds["control_alpha"].sel(measured="text") - uniform).max() > 0.05


def blind_llama(fresh):
    """A Llama without rotation, so that equal tokens have equal keys and queries everywhere."""
    module = fresh("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e30})
    module.model.rotary_emb.inv_freq.zero_()
    return module


@pytest.mark.parametrize(("bos", "first"), [("model", "<bos>"), ("on", "<bos>"), ("off", "")])
def test_bos_is_as_asked_for_and_said(bos, first, traced):
    ds = sink_scores(traced("gpt2"), task(), **SMALL, bos=bos)
    assert ds.attrs["bos"] == int(bool(first))
    assert (str(ds["token"].values[0, 0]) == "<bos>") == bool(first)


def test_bos_that_a_tokenizer_lacks_is_refused(traced, fresh, words):
    import copy

    without = copy.deepcopy(words)
    without.bos_token = None
    model = wrap(fresh("gpt2"), without, bos=False, override=True)
    with pytest.raises(AnalysisError, match=r"no BOS token; use bos='off'"):
        sink_scores(model, task(), **SMALL, bos="on")


def test_an_encoder_s_keys_are_seen_by_every_query(words):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=128, initializer_range=0.3, **shape)
    module = BertForMaskedLM(config).eval()
    model = wrap(module, words)
    ds = sink_scores(model, task(), **SMALL)
    tokens = torch.from_numpy(task().documents(words, length=LENGTH, count=ROWS, bos=model.bos))
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        patterns = torch.stack(module(tokens, output_attentions=True).attentions, 1).numpy()
    np.testing.assert_allclose(ds["alpha_prompt"], patterns.mean(-2), atol=1e-6)
    np.testing.assert_allclose(ds["alpha_null"], 1 / LENGTH)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_is_masked(family, traced):
    model = traced(family)
    tokens = task().documents(model.tokenizer, length=LENGTH, count=2, bos=True)
    alone = measure(model, tokens[1:, :9])
    tokens[1, 9:] = 0
    padded = measure(model, tokens, np.array([LENGTH, 9]))
    for name, values in alone.items():
        found = padded[name][1:] if name == "output_norm" else padded[name][1:, ..., :9]
        np.testing.assert_allclose(found, values, atol=1e-6 if name == "alpha" else 1e-5, rtol=1e-5, err_msg=name)
        assert name == "output_norm" or not padded[name][1, ..., 9:].any()


def test_two_thousand_tokens_equal_the_whole_pattern(fresh, words):
    module = fresh("gpt2", n_positions=2048)
    model = wrap(module, words)
    tokens = task().documents(words, length=2048, count=1, bos=True)
    module.set_attn_implementation("eager")
    with torch.inference_mode():
        patterns = torch.stack(module(torch.from_numpy(tokens), output_attentions=True).attentions, 1).numpy()
    expected = patterns.sum(-2, dtype=float) / np.arange(2048, 0, -1)
    np.testing.assert_allclose(measure(model, tokens)["alpha"], expected, atol=1e-6)
