"""What is read of a router is what its experts work with, in every family; a change of it changes just that."""

import functools

import numpy as np
import pytest
import torch
from conftest import GROUPED, SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.models.load import wrap
from workbench.models.reference import ModelError
from workbench.models.routers import WEIGHTS, RouterError, Routers, closing

TOKENS = torch.from_numpy(np.random.default_rng(4).integers(3, 400, (3, 9)))
DEEPSEEK = {
    **{**SHAPE, "intermediate_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_shared_experts": 1},
}
FOUR = {"num_experts": 4, "num_experts_per_tok": 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
FAMILIES = {
    "mixtral": {**GROUPED, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**GROUPED, "intermediate_size": 64, **FOUR},
    "qwen2_moe": {**GROUPED, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, **FOUR},
    "qwen3_moe": {**GROUPED, "head_dim": 8, "moe_intermediate_size": 32, "norm_topk_prob": True, **FOUR},
    "gpt_oss": {**GROUPED, "head_dim": 8, "intermediate_size": 32, "num_local_experts": 4, **SLIDING}
    | {"num_experts_per_tok": 2},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": {**DEEPSEEK, "n_routed_experts": 8},
    "granitemoe": {**GROUPED, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "flex_olmo": {**GROUPED, "intermediate_size": 64, **FOUR},
}
every_family = pytest.mark.parametrize("family", FAMILIES)
SAID = {  # how each family's code makes its weights
    "mixtral": "softmax over the chosen",
    "olmoe": "softmax over all",
    "qwen2_moe": "softmax over all",
    "qwen3_moe": "softmax over the chosen",
    "gpt_oss": "softmax over the chosen",
    "deepseek_v2": "softmax over all",
    "deepseek_v3": "sigmoid over its sum",
    "granitemoe": "softmax over the chosen",
    "flex_olmo": "softmax over all",
}


@functools.cache
def module_of(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=400, **FAMILIES[family] | {"initializer_range": 0.3})
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    return AutoModelForCausalLM.from_config(config).eval()


@functools.cache
def routers_of(family):
    return Routers(module_of(family), "model.layers")


def routed(family, **options):
    found = []
    last = routers_of(family).run(TOKENS, found.append, **options)
    return found, last


def block_of(family, layer):
    block = module_of(family).model.layers[layer]
    return next(part for part in block.modules() if hasattr(part, "experts"))


@every_family
def test_the_rule_is_the_family_s(family):
    routers = routers_of(family)
    assert routers.layers == ([1] if family.startswith("deepseek") else [0, 1])
    assert {rule.weights for rule in routers.rules.values()} == {SAID[family]}
    factor = 2.5 if family == "deepseek_v3" else 1.0
    assert all(rule.factor == pytest.approx(factor) for rule in routers.rules.values())
    assert all(rule.ranked for rule in routers.rules.values()) or family.startswith("deepseek")


@every_family
def test_a_layer_s_output_is_its_experts_run_by_hand(family):
    """Each expert alone on every token, added with the weights that were read, is what the experts return."""
    heard = []
    layer = routers_of(family).layers[-1]
    experts = block_of(family, layer).experts
    handle = experts.register_forward_hook(lambda module, args, out: heard.append((args[0], out)))
    try:
        found, last = routed(family)
    finally:
        handle.remove()
    (hidden, out), mine = heard[0], found[-1]
    with torch.no_grad():
        total = torch.zeros_like(out)
        for expert in range(routers_of(family).experts):
            alone = experts(hidden, torch.full((len(hidden), 1), expert), torch.ones(len(hidden), 1))
            total += alone * (mine.weights * (mine.chosen == expert)).sum(-1).view(-1, 1)
        plain = module_of(family).model(TOKENS).last_hidden_state
    torch.testing.assert_close(total, out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last, plain, atol=0, rtol=0)


@every_family
def test_weights_follow_from_the_logits_by_the_rule(family):
    for layer in routed(family)[0]:
        rule = routers_of(family).rules[layer.layer]
        expected = rule.factor * WEIGHTS[rule.weights](layer.logits, layer.chosen)
        torch.testing.assert_close(layer.weights, expected, atol=1e-5, rtol=1e-4)


@every_family
def test_forcing_an_expert_is_running_that_expert_by_hand(family):
    heard, layer = [], routers_of(family).layers[-1]
    experts = block_of(family, layer).experts

    def force(chosen, weights):
        alone = torch.zeros_like(weights)
        alone[..., 0] = 1
        return torch.cat([torch.full_like(chosen[..., :1], 2), torch.full_like(chosen[..., 1:], 1)], -1), alone

    handle = experts.register_forward_hook(lambda module, args, out: heard.append((args[0], out)))
    try:
        found, last = routed(family, reroute={layer: force})
    finally:
        handle.remove()
    with torch.no_grad():
        alone = experts(heard[0][0], torch.full((TOKENS.numel(), 1), 2), torch.ones(TOKENS.numel(), 1))
    torch.testing.assert_close(heard[0][1], alone, atol=1e-6, rtol=1e-5)
    assert (found[-1].chosen[..., 0] == 2).all() and not torch.equal(last, routed(family)[1])


@every_family
def test_a_closed_expert_gets_nothing_and_the_others_are_weighed_anew(family):
    layer = routers_of(family).layers[-1]
    before = routed(family)[0][-1]
    expert = int(before.chosen.flatten().bincount().argmax())
    after = routed(family, rescore={layer: closing(expert)})[0][-1]
    assert not after.weights[after.chosen == expert].any()
    if routers_of(family).rules[layer].weights == "softmax over the chosen":
        torch.testing.assert_close(after.weights.sum(-1), torch.ones_like(after.weights[..., 0]))
        without = before.logits.clone()
        without[..., expert] = -torch.inf
        assert torch.equal(after.chosen.sort(-1).values, without.topk(2).indices.sort(-1).values)


@every_family
def test_closing_an_expert_that_is_not_used_changes_nothing_to_the_last_bit(family):
    routers, mine, found = routers_of(family), TOKENS[:1, :1], []
    last = routers.run(mine, found.append)
    layer = routers.layers[-1]
    (idle, *_) = sorted(set(range(routers.experts)) - set(found[-1].chosen.flatten().tolist()))
    heard = []
    assert torch.equal(routers.run(mine, heard.append, rescore={layer: closing(idle)}), last)
    assert heard[-1].logits[..., idle] == -torch.inf
    assert torch.equal(heard[-1].weights, found[-1].weights)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_padding_changes_nothing(family):
    padded = TOKENS.clone()
    padded[1, 5:] = 0
    found = []
    routers_of(family).run(padded, found.append, lengths=torch.tensor([9, 5, 9]))
    alone = []
    routers_of(family).run(TOKENS[1:2, :5], alone.append)
    for mixed, single in zip(found, alone, strict=True):
        torch.testing.assert_close(mixed.logits[1:2, :5], single.logits, atol=1e-5, rtol=1e-5)


def test_nothing_is_left_behind():
    with pytest.raises(ZeroDivisionError):
        routers_of("mixtral").run(TOKENS, lambda layer: 1 / 0, rescore={0: closing(1)})
    for part in module_of("mixtral").modules():
        assert not part._forward_hooks and not part._forward_pre_hooks and "forward" not in vars(part)


def broken(family, change):
    """A model whose router's output is changed on its way to the experts."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(module_of(family).config).eval()
    plain = type(module.model.layers[0].mlp.gate).forward

    class Gate(type(module.model.layers[0].mlp.gate)):
        def forward(self, hidden):
            return change(*plain(self, hidden))

    for block in module.model.layers:
        block.mlp.gate.__class__ = Gate
    return module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, weights, chosen: (chosen, weights, chosen), "gives its choices as|no known way|does not give"),
        (lambda logits, weights, chosen: (logits, weights, chosen.int()), "gives its choices as torch.int32"),
        (lambda logits, weights, chosen: (-logits, weights, chosen), "no known way"),
        (lambda logits, weights, chosen: (logits, weights**2, chosen), "no known way"),
        (lambda logits, weights, chosen: (logits, weights, chosen[:, :1].expand(-1, 2)), "twice"),
        (lambda logits, weights, chosen: (logits[:5], weights, chosen), r"gives \(5, 4\) for 24 tokens"),
    ],
)
def test_a_router_whose_output_is_not_what_it_seems_is_refused(change, message):
    with pytest.raises(RouterError, match=message):
        Routers(broken("mixtral", change), "model.layers")


def test_a_dense_model_has_no_routing(traced):
    with pytest.raises(ModelError, match="its blocks have no experts"):
        assert traced("gpt2").routers


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_a_loaded_model_routes_as_the_module_does(family, traced):
    # In single precision a product depends on where in memory its numbers stand; in double the bound means something.
    model = traced(family, dtype="float64")
    last = model.routers.run(TOKENS)
    with torch.no_grad():
        expected = model.plain.base_model(TOKENS).last_hidden_state
    torch.testing.assert_close(last, expected, atol=1e-12, rtol=1e-12)
    assert wrap(model.plain, model.tokenizer).routers.rules == model.routers.rules
