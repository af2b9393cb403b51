"""Attention read while it is computed is the attention of whole patterns, in every family."""

import functools

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM

from workbench.models.load import wrap
from workbench.models.reference import ModelError
from workbench.models.scan import BLOCK
from workbench.models.trunk import share_weights

LENGTH = BLOCK["cpu"] + 21  # two blocks of queries, the second one short
TOKENS = np.random.default_rng(4).integers(3, 400, (2, LENGTH))
every_family = pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss", "bert"])
OSS = {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 6}


@pytest.fixture(scope="module")
def model_of(traced, words):
    """`model_of(family)`: a tiny model."""

    def other(family):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
        if family == "bert":
            config = BertConfig(vocab_size=len(words), intermediate_size=64, max_position_embeddings=128, **shape)
            return wrap(BertForMaskedLM(config).eval(), words)
        options = {**shape, **OSS, "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"]}
        config = AutoConfig.for_model("gpt_oss", vocab_size=len(words), **options)
        config.pad_token_id = config.eos_token_id = config.bos_token_id = 0
        return wrap(AutoModelForCausalLM.from_config(config).eval(), words)

    @functools.cache
    def made(family):
        return traced(family) if family in FAMILIES else other(family)

    return made


def scanned(model, tokens=TOKENS, **options):
    """The layers of a run as a list, and the normed last residuals."""
    found = []
    last = model.scanner.run(model.tensor(tokens), found.append, **options)
    return found, last


@functools.cache
def plain_of(model):
    """A copy that plain transformers runs with eager attention; asking for patterns leaves its own hooks behind."""
    module = share_weights(model.plain)
    module.set_attn_implementation("eager")
    return module


def whole(model, tokens=TOKENS):
    """What plain transformers gives with whole patterns."""
    with torch.no_grad():
        return plain_of(model).base_model(model.tensor(tokens), output_attentions=True)


@every_family
def test_the_numbers_are_those_of_whole_patterns(family, model_of):
    model = model_of(family)
    layers, last = scanned(model, watched=[0, 3, LENGTH - 1])
    expected = whole(model)
    torch.testing.assert_close(last, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    for layer, pattern in zip(layers, expected.attentions, strict=True):
        torch.testing.assert_close(layer.received / LENGTH, pattern.sum(2) / LENGTH, atol=1e-6, rtol=0)
        torch.testing.assert_close(layer.columns, pattern[..., [0, 3, LENGTH - 1]], atol=1e-6, rtol=1e-5)


@every_family
def test_padding_changes_nothing(family, model_of):
    model, lengths = model_of(family), [LENGTH, 30]
    padded = TOKENS.copy()
    padded[1, 30:] = 0
    layers, last = scanned(model, padded, lengths=torch.tensor(lengths), watched=[0])
    for row, length in enumerate(lengths):
        alone, end = scanned(model, TOKENS[row : row + 1, :length], watched=[0])
        torch.testing.assert_close(last[row : row + 1, :length], end, atol=1e-5, rtol=1e-5)
        for mixed, single in zip(layers, alone, strict=True):
            got = mixed.received[row : row + 1]
            torch.testing.assert_close(got[..., :length], single.received, atol=1e-5, rtol=1e-5)
            assert not got[..., length:].any()
            columns = mixed.columns[row : row + 1, :, :length]
            torch.testing.assert_close(columns, single.columns, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "gpt_oss", "bert"])
def test_a_key_that_is_hidden_gets_nothing_from_others(family, model_of):
    """Against the module with an additive mask that closes the column in the second layer only."""
    model = model_of(family)
    closed = torch.zeros(TOKENS.shape, dtype=torch.bool)
    closed[:, 0] = closed[1, 7] = True
    layers, last = scanned(model, hide={1: closed}, watched=[0, 7])
    plain, free = scanned(model, watched=[0, 7])
    torch.testing.assert_close(layers[0].columns, plain[0].columns, atol=0, rtol=0)
    for row, key, index in ((0, 0, 0), (1, 0, 0), (1, 7, 1)):
        column = layers[1].columns[row, :, :, index].clone()
        assert (column[:, key] > 0).all()
        column[:, key] = 0
        assert not column.any()
    assert (layers[1].columns[0, :, :, 1] >= plain[1].columns[0, :, :, 1] - 1e-6).all()
    assert not torch.equal(last, free)
    weights = _softmax_without(model, layers[1], closed)
    torch.testing.assert_close(layers[1].received, weights.sum(2), atol=1e-4, rtol=1e-5)


def _softmax_without(model, layer, closed):
    """Attention probabilities with columns closed, by the whole pattern renormalised by hand."""
    found = []
    model.scanner.run(model.tensor(TOKENS), found.append, watched=list(range(LENGTH)))
    pattern = found[1].columns  # the layer's input is the same in both runs
    kept = pattern * (~closed[:, None, None] | torch.eye(LENGTH, dtype=torch.bool))
    outside = 1 - pattern.sum(-1, keepdim=True)  # a learned sink's share
    return kept / (kept.sum(-1, keepdim=True) + outside)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "bert"])
def test_an_edit_of_an_mlp_is_a_hook_on_it(family, model_of):
    model = model_of(family)
    _, edited = scanned(model, mlps={0: lambda out: 2 * out})
    own = plain_of(model).get_submodule(model.bridge.adapter.component_mapping["blocks"].name)[0]
    place = "output.dense" if family == "bert" else "mlp"

    def double(module, args, out):
        return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out

    handle = own.get_submodule(place).register_forward_hook(double)
    try:
        expected = whole(model).last_hidden_state
    finally:
        handle.remove()
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(edited, scanned(model)[1], atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "granite"])
def test_losses_are_those_of_transformers(family, model_of):
    model, tokens = model_of(family), torch.from_numpy(TOKENS)
    losses = model.scanner.losses(scanned(model)[1], tokens)
    with torch.no_grad():
        expected = plain_of(model)(tokens, labels=tokens).loss
    assert losses.shape == (2, LENGTH - 1)
    torch.testing.assert_close(losses.mean(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_what_a_head_writes_has_the_norm_of_its_part_of_the_projection(family, model_of):
    model = model_of(family)
    heads = []
    scanned(model, heads=heads.append)
    weight = model.scanner.outputs[1].weight
    weight = weight if family == "gpt2" else weight.T
    parts = weight.unflatten(0, (4, -1))
    expected = torch.einsum("rphd,hdm->rphm", heads[1].z, parts).norm(dim=-1)
    torch.testing.assert_close(model.scanner.written(1, heads[1].z), expected, atol=1e-4, rtol=1e-4)


def hooked(module):
    """How many hooks each part has; transformers keeps some of its own."""
    return [len(part._forward_hooks) for part in module.modules()]


def test_the_scan_leaves_the_model_alone(model_of):
    model = model_of("gpt2")
    before, hooks = model.logits(TOKENS), hooked(model.scanner.module)
    with pytest.raises(ZeroDivisionError):
        model.scanner.run(model.tensor(TOKENS), lambda layer: 1 / 0, mlps={0: lambda out: out})
    assert hooked(model.scanner.module) == hooks
    torch.testing.assert_close(model.logits(TOKENS), before, atol=0, rtol=0)
    scanned(model)


def test_no_block_is_a_whole_pattern(model_of, monkeypatch):
    """The largest tensor that attention makes has a block's queries, not all of them."""
    from workbench.models import scan

    assert model_of("gpt2").scanner.causal()  # made, and so checked, before
    seen, softmax = [], scan._softmax
    monkeypatch.setattr(scan, "_softmax", lambda scores: seen.append(scores.shape[1]) or softmax(scores))
    scanned(model_of("gpt2"))
    assert seen == [BLOCK["cpu"], LENGTH - BLOCK["cpu"]] * 2


def test_a_family_with_other_attention_is_refused(words):
    torch.manual_seed(0)
    config = AutoConfig.for_model("bloom", vocab_size=len(words), hidden_size=32, n_layer=2, n_head=4)
    model = wrap(AutoModelForCausalLM.from_config(config).eval(), words)
    with pytest.raises(ModelError, match=r"attention of 'live' cannot be read: .*other numbers"):
        model.scanner.run(model.tensor(TOKENS), lambda layer: None)


def test_folded_weights_are_refused(saved):
    from workbench.models.load import load

    with pytest.raises(ModelError, match="fold=False"):
        load(saved("gpt2"), device="cpu", fold=True).scanner.causal()
