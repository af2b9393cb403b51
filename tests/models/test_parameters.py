"""Which parameters belong to what: against slices written down family by family, as each one's code reads them."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PolyConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from workbench.models.division import BASE
from workbench.models.parameters import adapter_parameters, differentiable, divide

WIDTH = 32
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 400, (2, 9)))


def division_of(model, names=None):
    return divide(model.plain, model.bridge.adapter.component_mapping, model.n_heads, names)


def marked(division, unit, module):
    """Ones where a unit is, by parameter name."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    found = {name: torch.zeros(shapes[name]) for name in division.names}
    for index in unit.pieces:
        piece = division.pieces[index]
        table = found[division.names[piece.parameter]]
        where = torch.arange(table.numel()).view(table.shape)
        wide = where.view(len(where), -1)
        table.view(-1)[piece.of(wide, *map(range, wide.shape))] += 1
    return found


def grid(shape, *parts):
    table = torch.zeros(shape)
    for part in parts:
        table[part] = 1
    return table


def head_slices(family, head):
    """A head's parameters in layer 1, by name and as the family's own code reads them."""
    own, group = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
    every = slice(None)
    if family == "gpt2":
        three = [slice(part * WIDTH + own.start, part * WIDTH + own.stop) for part in range(3)]
        name = "transformer.h.1.attn."
        return {
            f"{name}c_attn.weight": grid((32, 96), *((every, part) for part in three)),
            f"{name}c_attn.bias": grid(96, *three),
            f"{name}c_proj.weight": grid((32, 32), (own, every)),
        }
    if family == "gpt_neox":
        rows, name = slice(24 * head, 24 * head + 24), "gpt_neox.layers.1.attention."
        return {
            f"{name}query_key_value.weight": grid((96, 32), rows),
            f"{name}query_key_value.bias": grid(96, rows),
            f"{name}dense.weight": grid((32, 32), (every, own)),
        }
    name = "model.layers.1.self_attn."
    if family == "phi3":
        parts = own, slice(32 + group.start, 32 + group.stop), slice(48 + group.start, 48 + group.stop)
        joined = {f"{name}qkv_proj.weight": grid((64, 32), *parts)}
    else:
        joined = {f"{name}q_proj.weight": grid((32, 32), own)}
        joined |= {f"{name}{part}_proj.weight": grid((16, 32), group) for part in "kv"}
    return joined | {f"{name}o_proj.weight": grid((32, 32), (every, own))}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3", "olmoe", "phi3", "mixtral"])
@pytest.mark.parametrize("head", [0, 3])
def test_a_head_is_its_slices(family, head, traced):
    model = traced(family)
    division = division_of(model)
    (unit,) = [unit for unit in division.units if unit.name == f"L1H{head}"]
    expected = head_slices(family, head)
    for name, table in marked(division, unit, model.plain).items():
        assert torch.equal(table, expected.get(name, torch.zeros_like(table))), name


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "mixtral", "olmoe", "phi3"])
def test_every_parameter_is_in_one_piece_and_in_the_units_that_cover_it(family, traced):
    model = traced(family)
    division = division_of(model)
    total = sum(parameter.numel() for parameter in model.plain.parameters())
    for kinds in (("whole",), ("kind",)):
        covered = [i for unit in division.units if unit.kind in kinds for i in unit.pieces]
        assert sorted(covered) == list(range(len(division.pieces))) and division.sizes[covered].sum() == total
    for layer in (unit for unit in division.units if unit.kind == "layer"):
        matrices = [u for u in division.units if u.kind == "matrix" and u.layer == layer.layer]
        assert sorted(i for unit in matrices for i in unit.pieces) == sorted(layer.pieces)
        names = {unit.matrix for unit in matrices}
        assert {"norm", "W_Q", "W_K", "W_V", "W_O", "MLP_in", "MLP_out"} <= names and "other" not in names
        assert ("router" in names) == (family in ("mixtral", "olmoe")) and "attention" not in names
        assert ("MLP_gate" in names) == (family in ("llama", "qwen3", "gemma2"))
    assert ("unembed" in [u.name for u in division.units]) == (family not in ("gpt2", "gemma2"))  # tied there


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_expert_is_its_slab_of_the_stacked_matrices(family, traced):
    model = traced(family)
    division = division_of(model)
    (unit,) = [unit for unit in division.units if unit.name == "L0E2"]
    for name, table in marked(division, unit, model.plain).items():
        expected = torch.zeros_like(table)
        if "layers.0.mlp.experts." in name:
            expected[2] = 1
        assert torch.equal(table, expected), name


def test_experts_in_modules_of_their_own_are_told_apart(traced):
    model = traced("mixtral")
    module = copy.deepcopy(model.plain)
    for layer in module.model.layers:
        layer.mlp.experts = nn.ModuleList(nn.ModuleDict({"w2": nn.Linear(4, 3), "w3": nn.Linear(3, 4)}) for _ in "ab")
    mapping = model.bridge.adapter.component_mapping
    names = [name for name, _ in module.named_parameters() if ".experts." in name]
    division = divide(module, mapping, model.n_heads, names)
    experts = {u.name: {division.names[division.pieces[i].parameter] for i in u.pieces} for u in division.units}
    assert experts["L1E1"] == {name for name in names if "layers.1.mlp.experts.1." in name}
    assert experts["MLP_out"] == {name for name in names if ".w2." in name}


def lora(module, *targets, **options):
    torch.manual_seed(1)
    return get_peft_model(module, LoraConfig(target_modules=[*targets], r=4, init_lora_weights=False, **options)).eval()


def test_an_adapter_is_apart_from_what_it_changes(fresh, words):
    from workbench.models.load import wrap

    model = wrap(lora(fresh("llama"), "q_proj", "down_proj"), words)
    division = division_of(model)
    by_name = {unit.name: unit for unit in division.units}
    added = {division.names[division.pieces[i].parameter] for i in by_name["adapter"].pieces}
    assert (
        added == {n for n, _ in model.plain.named_parameters() if ".lora_" in n} == set(adapter_parameters(model.plain))
    )
    assert sorted(by_name[BASE].pieces + by_name["adapter"].pieces) == list(by_name["all"].pieces)
    plain = head_slices("llama", 1)
    for name, table in marked(division, by_name["L1H1"], model.plain).items():
        expected = plain.get(name.replace("base_layer.", ""), torch.zeros_like(table))
        assert torch.equal(table, expected), name
    assert by_name["L1.adapter"].layer == 1 and by_name["L0.MLP_out"].pieces


def test_only_the_parameters_named_are_divided(fresh, words):
    from workbench.models.load import wrap

    model = wrap(lora(fresh("llama"), "q_proj"), words)
    names = adapter_parameters(model.plain)
    division = division_of(model, names)
    assert set(division.names) == set(names)
    assert [u.name for u in division.units] == ["all", "adapter", "L0", "L0.adapter", "L1", "L1.adapter"]


def test_what_routes_the_skills_of_an_adapter_is_not_the_adapter(fresh):
    torch.manual_seed(0)
    poly = get_peft_model(fresh("llama"), PolyConfig(target_modules=["q_proj"], r=2, n_tasks=3, n_skills=2))
    kinds = adapter_parameters(poly.get_base_model())
    assert {kind for name, kind in kinds.items() if "module_logits" in name} == {"adapter router"}
    assert {kind for name, kind in kinds.items() if "poly_lora_" in name} == {"adapter"}
    assert len(kinds) == 6  # of 2 layers


def test_attention_that_cannot_be_seen_is_one_matrix(traced, monkeypatch):
    from workbench.models import parameters
    from workbench.models.trunk import TrunkError

    def unseen(*args):
        raise TrunkError("its attention is its own")

    monkeypatch.setattr(parameters, "Trunk", unseen)
    units = division_of(traced("gpt2")).units
    assert "head" not in {unit.kind for unit in units}
    assert {unit.matrix for unit in units if unit.kind == "matrix"} == {"norm", "attention", "W_O", "MLP_in", "MLP_out"}


def test_a_differentiable_twin_shares_the_weights_and_leaves_the_module_alone(traced):
    model = traced("gpt2")
    flags = [parameter.requires_grad for parameter in model.plain.parameters()]
    implementation = model.plain.config._attn_implementation
    twin = differentiable(model.plain)
    own, other = dict(model.plain.named_parameters()), dict(twin.named_parameters())
    assert list(own) == list(other) and all(own[n].data_ptr() == other[n].data_ptr() for n in own)
    assert all(p.requires_grad for p in other.values()) and twin.lm_head.weight is twin.transformer.wte.weight
    twin(input_ids=TOKENS).logits.sum().backward()
    assert [p.requires_grad for p in own.values()] == flags and all(p.grad is None for p in own.values())
    assert model.plain.config._attn_implementation == implementation


def test_a_model_in_half_precision_is_differentiated_in_single(saved):
    half = AutoModelForCausalLM.from_pretrained(saved("llama"), dtype=torch.bfloat16)
    twin = differentiable(half)
    assert {p.dtype for p in twin.parameters()} == {torch.float32} and next(half.parameters()).dtype == torch.bfloat16
    assert twin(input_ids=TOKENS).logits.dtype == torch.float32
