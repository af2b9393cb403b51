"""Every family, loaded for tracing, is the model that transformers runs."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES, build
from transformers import AutoModelForCausalLM

from workbench.models.load import load, wrap

MIXTURES = ("mixtral", "olmoe")
TOKENS = np.random.default_rng(0).integers(3, 400, (2, 12))


def plain(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options).eval()


def logits_of(module, tokens=TOKENS):
    with torch.inference_mode():
        return module(input_ids=torch.from_numpy(tokens)).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_as_transformers_and_a_green_card(family, traced, saved):
    model = traced(family)
    assert model.card.colour == "green", model.card
    torch.testing.assert_close(model.logits(TOKENS), logits_of(plain(saved(family))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_gives_the_model_s_own_shapes(family, traced, saved):
    model, config = traced(family), plain(saved(family)).config
    heads, kept_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    names = [f"blocks.1.{hook}" for hook in ("attn.hook_z", "attn.hook_v", "attn.hook_pattern", "hook_resid_post")]
    logits, kept = model.capture(TOKENS, names)
    shapes = [tuple(kept[name].shape) for name in names]
    rows, length = TOKENS.shape
    assert shapes == [
        (rows, length, heads, size),
        (rows, length, kept_heads, size),
        (rows, heads, length, length),
        (rows, length, config.hidden_size),
    ]
    assert (model.n_layers, model.n_heads, model.context) == (2, heads, 128)
    assert torch.equal(logits, model.logits(TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_patterns_are_those_of_transformers(family, traced, saved):
    with torch.inference_mode():
        expected = plain(saved(family))(input_ids=torch.from_numpy(TOKENS), output_attentions=True).attentions
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    _, kept = traced(family).capture(TOKENS, names)
    for name, pattern in zip(names, expected, strict=True):
        torch.testing.assert_close(kept[name], pattern, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", MIXTURES)
def test_routers_are_checked(family, traced):
    (check,) = [check for check in traced(family).card.checks if check.name == "routers"]
    assert check.colour == "green" and "2 layers" in check.found


def test_a_dense_model_has_no_router_check(traced):
    assert "routers" not in [check.name for check in traced("gpt2").card.checks]


@pytest.mark.parametrize("family", MIXTURES)
def test_a_router_hook_that_tells_other_experts_is_noticed(family, saved, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    genuine = TransformerBridge.run_with_hooks

    def lying(self, tokens, fwd_hooks=(), **options):
        hooks = []
        for name, fwd in fwd_hooks:
            hooks.append((name, (lambda value, hook, fwd=fwd: fwd(value + 1, hook)) if "indices" in name else fwd))
        return genuine(self, tokens, fwd_hooks=hooks, **options)

    monkeypatch.setattr(TransformerBridge, "run_with_hooks", lying)
    model = load(saved(family), device="cpu")
    assert model.card.colour == "amber"
    assert "2 of 2 routers fail" in repr(model.card)


def test_a_changed_weight_is_seen_as_other_numbers(saved, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    genuine = TransformerBridge.boot_transformers

    def wrong(*given, **options):
        bridge = genuine(*given, **options)
        with torch.no_grad():
            next(bridge.parameters())[3:, 0] += 0.1
        return bridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", wrong)
    model = load(saved("gpt2"), device="cpu")
    assert [check.name for check in model.card.problems()] == ["same numbers"]


def test_folding_keeps_the_log_probabilities(traced, saved):
    folded, raw = traced("gpt2", fold=True), traced("gpt2")
    assert folded.card.colour == "green" and folded.attrs["folding"] == "folded"
    after = folded.logits(TOKENS).log_softmax(-1)
    torch.testing.assert_close(after, raw.logits(TOKENS).log_softmax(-1), atol=1e-4, rtol=0)
    assert not torch.allclose(folded.logits(TOKENS), raw.logits(TOKENS), atol=1e-2)  # the shift is real


def test_half_precision_runs_in_half_precision(saved):
    model = load(saved("llama"), device="cpu", dtype="bfloat16")
    assert model.card.colour == "green", model.card
    assert model.bridge.cfg.dtype is torch.bfloat16 and model.logits(TOKENS).dtype is torch.float32
    expected = logits_of(plain(saved("llama"), dtype=torch.bfloat16))
    torch.testing.assert_close(model.logits(TOKENS), expected, atol=0.3, rtol=0)


@pytest.mark.parametrize(("bos", "front"), [(None, [1]), (True, [1]), (False, [])])
def test_bos_is_the_tokenizer_s_choice_unless_told(bos, front, saved, words):
    model = load(saved("gpt2"), device="cpu", bos=bos)
    plain_ids = words("Mary gave", add_special_tokens=False)["input_ids"]
    assert model.encode("Mary gave").tolist() == [*front, *plain_ids]
    assert model.attrs["bos"] == len(front)


def test_a_tokenizer_that_adds_no_bos_gets_none(bpe):
    module = build("gpt2", bpe)
    assert not wrap(module, bpe).bos
    assert wrap(module, bpe, bos=True).encode("Mary")[0] == bpe.bos_token_id


def test_tokens_are_the_texts_of_the_ids(traced):
    model = traced("gpt2")
    assert model.tokens(model.encode("Mary gave")) == ["<bos>", "Mary", "gave"]
