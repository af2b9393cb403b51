"""The model as edges: what writers add sums to the stream, and slopes are the derivatives of exact patching."""

import functools

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from transformers import AutoModelForCausalLM

from workbench.models.load import ModelError, load, wrap

TOKENS = np.random.default_rng(4).integers(3, 400, (2, 2, 9))  # run, prompt, pos
STEPS = (2e-3, 3e-2)  # for readers of the first and of the second layer, which move the metric less
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def two_runs(model):
    """Clean and corrupted run, alike up to position 3."""
    tokens = TOKENS.copy()
    tokens[1, :, :3] = tokens[0, :, :3]
    return [model.trunk.record(model.tensor(side)) for side in tokens]


@every_family
def test_the_sizes_are_the_family_s(family, traced, saved):
    edges = traced(family).edges
    config = AutoModelForCausalLM.from_pretrained(saved(family)).config
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    graph = edges.graph
    assert (graph.layers, graph.heads, graph.kv_heads) == (2, config.num_attention_heads, kv_heads)
    assert graph.parallel == (family == "gpt_neox") and edges.additive == (family != "gemma2")
    expected = {"granite": [0.5, 0.5], "gemma2": [None, None]}.get(family, [1.0, 1.0])
    assert [scale if scale is None else round(scale, 5) for scale in edges.scales] == expected


@every_family
def test_what_writers_add_sums_to_the_stream(family, traced):
    """Every layer's heads to what its attention added, and all writers to the last block's output."""
    model, (clean, corrupted) = traced(family), two_runs(traced(family))
    edges = model.edges
    if not edges.additive:
        pytest.skip("a norm after attention: see the small step below")
    found = edges.differences(clean, corrupted)
    for layer in range(2):
        first = edges.graph.writer(layer, 0)
        added = edges.attention_written(clean, layer) - edges.attention_written(corrupted, layer)
        torch.testing.assert_close(found[:, first : first + 4].sum(1), added, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), clean.inputs[-1] - corrupted.inputs[-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(edges.differences(clean, corrupted, 3), found[:, :, 3:], atol=1e-5, rtol=1e-5)
    assert found[:, :, :3].abs().max() < 1e-5  # the runs are alike there
    for writer in range(len(edges.graph.writers)):
        one = edges.added(clean, corrupted, writer, 3)
        torch.testing.assert_close(one, found[:, writer, 3:], atol=1e-5, rtol=1e-4)


@every_family
def test_the_mlp_adds_what_it_returns(family, traced):
    """As it is, halved (granite), or through the norm behind it (gemma2)."""
    model, (clean, corrupted) = traced(family), two_runs(traced(family))
    edges, at = model.edges, corrupted.attention
    found = edges.differences(clean, corrupted, 0, at)

    def added(recorded, layer):
        value = recorded.mlp[layer]
        if family == "gemma2":
            return model.trunk.parts[layer].block.post_feedforward_layernorm(value)
        return value * (0.5 if family == "granite" else 1)

    for layer in range(2):
        expected = added(clean, layer) - added(corrupted, layer)
        torch.testing.assert_close(found[:, edges.graph.writer(layer)], expected, atol=1e-4, rtol=1e-4)


def test_behind_a_norm_heads_add_to_first_order(traced):
    """The smaller the step, the nearer the sum over heads to what the layer adds more."""
    model = traced("gemma2")
    clean, corrupted = two_runs(model)
    edges, layer, gaps = model.edges, 1, []
    frame = model.trunk.frame(TOKENS.shape[-1])
    for step in (1e-1, 1e-2):
        z = step * (clean.z[layer] - corrupted.z[layer])
        base = corrupted.attention[layer]
        exact = edges.written(layer, base + model.trunk.out(layer, z), frame) - edges.written(layer, base, frame)
        by_head = edges.heads_written(layer, z, base)
        assert by_head.shape == (2, 4, 9, 32)
        gaps.append(((by_head.sum(1) - exact).norm() / exact.norm()).item())
    assert gaps[0] < 0.2 and gaps[1] < 0.2 * gaps[0]


def test_a_head_of_gpt2_writes_its_rows_of_the_output_matrix(traced, saved):
    model, (clean, corrupted) = traced("gpt2"), two_runs(traced("gpt2"))
    found = model.edges.differences(clean, corrupted)
    blocks = AutoModelForCausalLM.from_pretrained(saved("gpt2")).transformer.h
    for layer in range(2):
        for head in range(4):
            rows = blocks[layer].attn.c_proj.weight[head * 8 : (head + 1) * 8].detach()
            expected = (clean.z[layer] - corrupted.z[layer])[:, :, head] @ rows
            torch.testing.assert_close(found[:, 1 + layer * 5 + head], expected, atol=1e-5, rtol=1e-5)


def readers_of(graph):
    """(layer, part, head) of a few readers of every kind."""
    for layer in range(graph.layers):
        yield from ((layer, "q", head) for head in (0, 3))
        yield from ((layer, part, graph.kv_heads - 1) for part in "kv")
        yield layer, "mlp", 0
    yield 0, "logits", 0


def check_slopes(model, start):
    """Each reader's own input is pushed along its gradient, turned by a random vector of the same length."""
    recorded = two_runs(model)[0]
    edges, generator = model.edges, torch.Generator().manual_seed(3)
    weights = torch.randn(32, generator=generator)

    def metric(last):
        return torch.tanh(edges.trunk.norm(last) @ weights / 10)

    found = torch.full((2, len(edges.graph.readers), 9 - start, 32), torch.nan)
    for readers, before, grads in edges.slopes(metric, recorded.inputs[0][:, start:], recorded, start):
        assert set(edges.graph.valid[readers].sum(1).tolist()) == {before}
        found[:, readers] = grads
    assert not found.isnan().any()
    for layer, part, head in readers_of(edges.graph):
        grads = found[:, -1 if part == "logits" else edges.graph.readers_of(layer, part).start + head]
        ways = [grads, torch.randn(grads.shape, generator=generator)]
        push = sum(way / way.norm(dim=(1, 2), keepdim=True) for way in ways)
        step = STEPS[layer]
        last = [edges.patched(layer, part, [head], by * push[None], recorded, start) for by in (step, -step)]
        numeric = (metric(last[0]) - metric(last[1])).double() / (2 * step)
        error = (numeric - (grads * push).sum((1, 2))).abs() / grads.norm(dim=(1, 2))
        assert (error < 0.01).all(), (layer, part, head, error)


@every_family
@pytest.mark.parametrize("start", [0, 4])
def test_slopes_are_the_derivatives_of_exact_patching(family, start, traced):
    check_slopes(traced(family), start)


def test_an_mlp_that_shares_its_norm_with_attention_reads_for_itself(fresh, words, tmp_path, monkeypatch):
    """Both are given one and the same tensor, and only the MLP's part of the gradient is the MLP's."""
    monkeypatch.setitem(FAMILIES, "phi", {**FAMILIES["llama"]})
    fresh("phi").save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = load(tmp_path, device="cpu")
    assert model.edges.graph.parallel
    check_slopes(model, 0)


@every_family
def test_several_readers_are_patched_side_by_side(family, traced):
    model, corrupted = traced(family), two_runs(traced(family))[1]
    edges, graph = model.edges, model.edges.graph
    change = 0.5 * torch.randn(3, 2, 6, 32, generator=torch.Generator().manual_seed(0))
    for part in ("q", "k", "v", "mlp", "logits"):
        heads = [0, 3, 1] if part == "q" else [0, graph.kv_heads - 1, 0]
        together = edges.patched(1, part, heads, change, corrupted, 3)
        for row, head in enumerate(heads):
            alone = edges.patched(1, part, [head], change[row : row + 1], corrupted, 3)
            torch.testing.assert_close(together[2 * row : 2 * row + 2], alone, atol=1e-5, rtol=1e-5)
        nothing = edges.patched(1, part, heads[:1], torch.zeros_like(change[:1]), corrupted, 3)
        torch.testing.assert_close(nothing, corrupted.inputs[-1][:, -1], atol=1e-5, rtol=1e-5)


@every_family
def test_readers_with_one_input_are_the_block_s_attention(family, traced):
    """Every reader given what the block was given: the recorded heads come out."""
    model, (clean, _) = traced(family), two_runs(traced(family))
    edges, frame = model.edges, model.trunk.frame(TOKENS.shape[-1])
    for layer in range(2):
        sizes = {"q": 4, "k": edges.graph.kv_heads, "v": edges.graph.kv_heads}
        inputs = {part: clean.inputs[layer][:, None].expand(-1, size, -1, -1) for part, size in sizes.items()}
        with torch.no_grad():
            z = edges.attend(layer, edges.read(layer, inputs), clean, frame)
        torch.testing.assert_close(z, clean.z[layer], atol=1e-5, rtol=1e-5)
    assert not [name for name, part in model.plain.named_modules() if "forward" in vars(part) or part._forward_hooks]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_fused_projection_is_told_apart_as_the_bridge_splits_it(family, traced):
    model = traced(family)
    for layer, reading in enumerate(model.edges.readings):
        assert len(reading.modules) == 1
        for part in "qkv":
            split = getattr(model.bridge.blocks[layer].attn, part)
            torch.testing.assert_close(reading.weights[part].flatten(0, 1), split.weight, atol=0, rtol=0)
            torch.testing.assert_close(reading.biases[part].flatten(), split.bias, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_grouped_projections_are_cut_by_head(family, traced, saved):
    attention = AutoModelForCausalLM.from_pretrained(saved(family)).model.layers[1].self_attn
    if family == "phi3":
        weights = dict(zip("qkv", attention.qkv_proj.weight.split([32, 16, 16]), strict=True))
    else:
        weights = {part: getattr(attention, f"{part}_proj").weight for part in "qkv"}
    for part, weight in weights.items():
        found = traced(family).edges.readings[1].weights[part]
        torch.testing.assert_close(found, weight.detach().view(-1, 8, 32), atol=0, rtol=0)


def test_a_wide_fused_projection_in_half_precision_is_told_apart(words):
    """More columns than bfloat16 has whole numbers for."""
    from transformers import GPT2Config, GPT2LMHeadModel

    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = GPT2Config(vocab_size=len(words), n_embd=192, n_layer=1, n_head=4, n_positions=32, **special)
    model = wrap(GPT2LMHeadModel(config).eval().to(torch.bfloat16), words)
    weight = model.plain.transformer.h[0].attn.c_attn.weight.T
    for number, part in enumerate("qkv"):
        found = model.edges.readings[0].weights[part]
        assert torch.equal(found.flatten(0, 1), weight[192 * number : 192 * (number + 1)])


def test_a_scaled_residual_in_half_precision_is_no_norm(fresh, words, tmp_path, monkeypatch):
    """0.22, as Granite has it, is rounded differently at every value."""
    monkeypatch.setitem(FAMILIES, "granite", {**FAMILIES["granite"], "residual_multiplier": 0.22})
    fresh("granite").save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    edges = load(tmp_path, device="cpu", dtype="bfloat16").edges
    np.testing.assert_allclose(np.array(edges.scales, float), 0.22, rtol=0.01)


def test_without_a_trunk_the_reason_is_given(traced):
    with pytest.raises(ModelError, match=r"cannot be told apart \(the weights are folded"):
        _ = traced("gpt2", fold=True).edges
