"""The model run piece by piece gives the numbers of the model run whole, and leaves nothing behind."""

import functools

import numpy as np
import pytest
import torch
from conftest import FAMILIES

from workbench.models.load import load, wrap
from workbench.models.paths import receiving, spread
from workbench.models.trunk import Trunk

TOKENS = np.random.default_rng(4).integers(3, 400, (2, 10))
Z = "blocks.{}.attn.hook_z"
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def recorded_of(model):
    return model.trunk.record(model.tensor(TOKENS))


def left_behind(module) -> list[str]:
    """Modules that are not as transformers made them."""
    hooked = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        name
        for name, part in module.named_modules()
        if "forward" in vars(part)
        or getattr(part, "workbench_act", None) is not None
        or any(getattr(part, kind) for kind in hooked)
    ]


@every_family
def test_a_recorded_run_ends_in_the_bridge_s_logits(family, traced):
    model = traced(family)
    assert model.trunk is not None, model.way
    assert model.way.startswith("recorded run")
    recorded = recorded_of(model)
    torch.testing.assert_close(
        model.trunk.logits(recorded.inputs[-1]), model.logits(TOKENS), atol=1e-5, rtol=1e-5, msg=model.way
    )
    columns = torch.tensor([3, 17, 255])
    some = model.trunk.logits(recorded.inputs[-1][:, -1], columns)
    torch.testing.assert_close(some, model.logits(TOKENS)[:, -1, columns], atol=1e-5, rtol=1e-5)


@every_family
def test_what_is_recorded_is_what_the_bridge_s_hooks_see(family, traced):
    model = traced(family)
    recorded, layers = recorded_of(model), range(model.n_layers)
    _, kept = model.capture(TOKENS, [name.format(lay) for lay in layers for name in (Z, "blocks.{}.hook_resid_pre")])
    for layer in layers:
        torch.testing.assert_close(recorded.z[layer], kept[Z.format(layer)], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(recorded.inputs[layer], kept[f"blocks.{layer}.hook_resid_pre"], atol=1e-5, rtol=1e-5)
    only = model.trunk.record(model.tensor(TOKENS), "z")
    assert len(only.z) == model.n_layers and not only.inputs and not only.keys
    torch.testing.assert_close(only.z[1], recorded.z[1], atol=0, rtol=0)


@every_family
def test_the_weights_are_there_once(family, traced):
    model = traced(family)
    mine = {name: value.data_ptr() for name, value in model.plain.named_parameters()}
    theirs = {value.data_ptr() for value in model.bridge.original_model.parameters()}
    assert mine and set(mine.values()) <= theirs, [name for name, at in mine.items() if at not in theirs]


@every_family
@pytest.mark.parametrize("start", [0, 6])
def test_running_on_with_one_head_replaced_is_the_hooked_run(family, start, traced):
    """Each layer, each head side by side; the change begins at `start`, or (odd heads) after it."""
    model = traced(family)
    trunk, recorded, heads = model.trunk, recorded_of(model), model.n_heads
    generator = torch.Generator().manual_seed(1)
    for layer in range(model.n_layers):
        other = recorded.z[layer] + torch.randn(recorded.z[layer].shape, generator=generator)
        changed = []
        for head in range(heads):
            z, since = recorded.z[layer].clone(), start + head % 2
            z[:, since:, head] = other[:, since:, head]
            changed.append(z)
        z = torch.cat([put[:, start:] for put in changed])
        hidden = recorded.inputs[layer][:, start:].repeat(heads, 1, 1)
        last = trunk.run_on(layer, hidden, recorded, start, attention=trunk.out(layer, z))
        expected = [model.logits(TOKENS, {Z.format(layer): lambda value, put=put: put})[:, -1] for put in changed]
        torch.testing.assert_close(trunk.logits(last), torch.cat(expected), atol=1e-5, rtol=1e-5)


@every_family
@pytest.mark.parametrize("start", [0, 6])
def test_running_on_from_a_changed_input_is_the_hooked_run(family, start, traced):
    model = traced(family)
    recorded = recorded_of(model)
    for layer in range(model.n_layers):
        hidden = recorded.inputs[layer].clone()
        hidden[:, start:] *= 1.5
        hidden[:, start, :7] += 1
        last = model.trunk.run_on(layer, hidden[:, start:], recorded, start)
        whole = model.logits(TOKENS, {f"blocks.{layer}.hook_in": lambda value, hidden=hidden: hidden})
        torch.testing.assert_close(model.trunk.logits(last), whole[:, -1], atol=1e-5, rtol=1e-5)


@every_family
def test_nothing_is_left_behind(family, traced):
    model = traced(family)
    before, trunk = model.logits(TOKENS), model.trunk
    recorded = trunk.record(model.tensor(TOKENS))
    at = torch.tensor([4, 7])
    arrived = spread(trunk, recorded, recorded, at, [1, 2], True)
    acts = {1: receiving(trunk, 1, arrived[1], {"q": [0], "v": [3]}, at, TOKENS.shape[1], 0)}
    rows = len(arrived[1]) // len(TOKENS)
    trunk.run_on(1, recorded.inputs[1].repeat(rows, 1, 1), recorded, 0, acts=acts)
    trunk.seen(0, recorded.inputs[0], trunk.frame(TOKENS.shape[1]))
    with pytest.raises(RuntimeError):
        trunk.run_on(0, recorded.inputs[0][:, :, :-1], recorded, 0)
    for _ in model.edges.slopes(lambda last: last.sum(-1), recorded.inputs[0], recorded):
        pass
    assert not left_behind(model.plain)
    assert all(value.grad is None and not value.requires_grad for value in model.bridge.parameters())
    assert torch.equal(model.logits(TOKENS), before)


def test_the_bridge_s_own_attention_is_not_touched(traced, saved):
    """Patterns are still there to be read, which only its own attention gives."""
    model = traced("llama")
    assert model.trunk is not None
    _, kept = model.capture(TOKENS, ["blocks.0.attn.hook_pattern"])
    torch.testing.assert_close(kept["blocks.0.attn.hook_pattern"].sum(-1), torch.ones(2, 4, 10))


def test_a_folded_model_has_no_trunk(traced):
    model = traced("gpt2", fold=True)
    assert model.trunk is None
    assert model.way == "plain hooks, slower: the weights are folded, which the blocks of the original model are not"


def test_other_numbers_than_the_bridge_s_are_refused(fresh, words, monkeypatch):
    genuine = Trunk.logits
    monkeypatch.setattr(Trunk, "logits", lambda *given: genuine(*given) + 1)
    model = wrap(fresh("gpt2"), words)
    assert model.trunk is None
    assert "its blocks run one by one give other logits, by 1.0e+00 (allowed" in model.way


def test_blocks_that_cannot_run_alone_are_refused_with_the_error(fresh, words, monkeypatch):
    def broken(*given, **options):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(Trunk, "run_on", broken)
    assert "cannot be run one by one (RuntimeError: no such thing)" in wrap(fresh("llama"), words).way


OTHERS = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "gpt_oss": {**FAMILIES["mixtral"], "head_dim": 8, "sliding_window": 6},
}


@pytest.fixture
def other(fresh, words, tmp_path, monkeypatch):
    """A tiny model of a family that the other tests leave out."""

    def loaded(family):
        monkeypatch.setitem(FAMILIES, family, OTHERS[family])
        fresh(family).save_pretrained(tmp_path)
        words.save_pretrained(tmp_path)
        return load(tmp_path, device="cpu")

    return loaded


@pytest.mark.parametrize("family", ["bloom", "gptj"])
def test_a_family_with_attention_of_its_own_is_left_to_the_hooks(family, other):
    model = other(family)
    assert model.trunk is None and "does not go through transformers' attention interface" in model.way


def test_an_mlp_that_returns_its_routing_too_can_be_held(other):
    model = other("gpt_oss")
    recorded = model.trunk.record(model.tensor(np.concatenate([TOKENS, TOKENS[:1]])))
    arrived = spread(model.trunk, recorded, recorded, None, [2], True)[2]
    torch.testing.assert_close(arrived, recorded.inputs[2].repeat(8, 1, 1), atol=1e-5, rtol=1e-5)
