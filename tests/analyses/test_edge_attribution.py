"""Edge scores against transformer_lens, exact edges against hooks on plain transformers, and sums known in advance."""

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FAMILIES
from test_head_patching import metric_of
from test_head_patching import planted as shrunk
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch
from transformers import AutoModelForCausalLM

from workbench import store
from workbench.analyses import AnalysisError, edge_attribution, head_patching
from workbench.models.graph import Graph
from workbench.models.load import wrap
from workbench.models.reference import ModelError
from workbench.schema import check
from workbench.tasks import make_task

MIXTURES = ("mixtral", "olmoe", "qwen3_moe")
METHODS = ("eap", "inputs", "activations")
ALL = 10**6  # edges
LAYERS, HEADS, SIZE = 2, 4, 8  # of the tiny models


def tokens_of(model, task):
    """Prompts, and their clean and corrupted tokens int64 [prompt, pos]; all of one length."""
    prompts = task.encode(model.tokenizer, bos=model.bos)
    return prompts, *(torch.tensor(np.stack(side)) for side in (prompts.clean, prompts.corrupted))


def nodes(ds) -> dict[str, float]:
    """The sum of each writer's outgoing edges."""
    return dict(zip(ds["component"].values.tolist(), ds["score"].sum("receiver").values.tolist(), strict=True))


def gap_of(ds) -> float:
    return ds.attrs["clean"] - ds.attrs["corrupted"]


@pytest.fixture(scope="module")
def oracle(fresh, words):
    """A GPT-2 of its own (transformer_lens wants weights with gradients), a task, and every edge's score there."""
    model, task = wrap(fresh("gpt2"), words), make_task("subject_verb", n=4)
    model.bridge.requires_grad_(True)
    expected = by_transformer_lens(model, task)
    model.bridge.requires_grad_(False)
    return model, task, expected


def by_transformer_lens(model, task):
    """The score of every edge, float64 [prompt, reader, writer], one pair at a time, summed over positions."""
    prompts, clean, corrupted = tokens_of(model, task)
    graph, config = Graph(LAYERS, HEADS, HEADS), EdgeAttributionConfig(granularity="edge")

    def name(node):
        fixed = {"embed": "input", "logits": "logits", "mlp_out": f"MLP{node.layer}", "mlp_in": f"MLP{node.layer}"}
        part = node.kind.removesuffix("_input") if node.kind.endswith("_input") else ""
        return fixed.get(node.kind) or f"L{node.layer}H{node.head}" + (f".{part}" if part else "")

    found = np.zeros((len(prompts), len(graph.readers), len(graph.writers)))
    for row in range(len(prompts)):

        def metric(logits, row=row):
            return metric_of(prompts, [row])(logits).sum()

        result = attribution_patch(model.bridge, clean[row : row + 1], corrupted[row : row + 1], metric, config)
        for (writer, reader), score in result.edge_scores.items():
            found[row, graph.readers.index(name(reader)), graph.writers.index(name(writer))] += score
    return found


def test_eap_equals_transformer_lens(oracle):
    model, task, expected = oracle
    ds = edge_attribution(model, task, method="eap", exact=0)
    np.testing.assert_allclose(ds["score"].values * gap_of(ds), expected.mean(0), atol=1e-5, rtol=1e-5)
    assert np.array_equal(ds["valid"].values == 1, Graph(LAYERS, HEADS, HEADS).valid)
    assert (expected[:, ds["valid"].values == 0] == 0).all()
    by_writer = expected.mean(0).sum(0) / gap_of(ds)
    np.testing.assert_allclose(list(nodes(ds).values()), by_writer, atol=1e-5)
    cells = by_writer[1:].reshape(LAYERS, HEADS + 1)[:, :HEADS]
    np.testing.assert_allclose(ds["effect"].values, cells, atol=1e-5)


def test_the_interval_is_that_of_a_mean_over_prompts(oracle):
    model, task, single = oracle
    ds = edge_attribution(model, task, method="eap", exact=0, batch=3)
    half = 1.959964 * single.std(0, ddof=1) / np.sqrt(4) / abs(gap_of(ds))
    np.testing.assert_allclose((ds["score_high"] - ds["score"]).values, half, atol=1e-5)
    np.testing.assert_allclose((ds["score"] - ds["score_low"]).values, half, atol=1e-5)


def test_the_interval_shrinks_with_more_prompts(zoo_model):
    widths = []
    for n in (16, 128):
        ds = edge_attribution(zoo_model, make_task("subject_verb", n=n), steps=1, exact=0)
        assert (ds["score_low"] <= ds["score"]).all() and (ds["score"] <= ds["score_high"]).all()
        widths.append(float((ds["score_high"] - ds["score_low"]).sum()))
    assert widths[1] < 0.6 * widths[0]  # 8 times the prompts: about a third


def heard(module, tokens, hooks=()):
    """Logits, and what each head's output matrix, block, MLP and query-key-value matrix took and returned."""
    kept, handles = {}, [hook() for hook in hooks]

    def keep(part, args, out):
        kept[part] = args[0], out[0] if isinstance(out, tuple) else out

    parts = [part for block in module.transformer.h for part in (block, block.mlp, block.attn.c_proj)]
    handles += [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad():
        logits = module(input_ids=tokens).logits
    for handle in handles:
        handle.remove()
    return logits, kept


def change_of_input(module, runs, reader, delta):
    """A hook on plain transformers that adds `delta` to what one reader reads, and to nothing else."""
    name, _, part = reader.partition(".")
    blocks = module.transformer.h
    if name == "logits":
        return lambda: module.transformer.ln_f.register_forward_pre_hook(lambda m, args: (args[0] + delta,))
    if name.startswith("MLP"):
        return lambda: blocks[int(name[3])].ln_2.register_forward_pre_hook(lambda m, args: (args[0] + delta,))
    block, head = blocks[int(name[1])], int(name[3])
    with torch.no_grad():
        own = block.attn.c_attn(block.ln_1(runs[block][0] + delta))
    columns = slice(first := 32 * "qkv".index(part) + head * SIZE, first + SIZE)

    def put(m, args, out):
        out = out.clone()
        out[..., columns] = own[..., columns]
        return out

    return lambda: block.attn.c_attn.register_forward_hook(put)


def test_exact_effects_of_all_edges_equal_plain_transformers(traced, saved):
    model, task = traced("gpt2"), make_task("subject_verb", n=5)
    prompts, clean, corrupted = tokens_of(model, task)
    ds = edge_attribution(model, task, steps=1, exact=ALL, batch=2)
    graph = model.edges.graph
    left = {graph.name(*cell) for cell in zip(*np.nonzero(graph.valid), strict=True)} - set(ds["edge"].values.tolist())
    assert all(ds["score"].values[graph.edge(edge)] == 0 for edge in left) and len(ds["edge"]) > 100
    module = AutoModelForCausalLM.from_pretrained(saved("gpt2")).eval()
    blocks, (_, high), (plain, low) = module.transformer.h, heard(module, clean), heard(module, corrupted)
    added = {"input": high[blocks[0]][0] - low[blocks[0]][0]}
    for layer, block in enumerate(blocks):
        added[f"MLP{layer}"] = high[block.mlp][1] - low[block.mlp][1]
        z = high[block.attn.c_proj][0] - low[block.attn.c_proj][0]
        for head in range(HEADS):
            some = slice(head * SIZE, (head + 1) * SIZE)
            added[f"L{layer}H{head}"] = z[..., some] @ block.attn.c_proj.weight[some].detach()
    metric = metric_of(prompts, range(5))
    for edge, value in zip(ds["edge"].values, ds["exact"].values * gap_of(ds), strict=True):
        writer, reader = str(edge).split("->")
        logits, _ = heard(module, corrupted, [change_of_input(module, low, reader, added[writer])])
        np.testing.assert_allclose(value, (metric(logits) - metric(plain)).mean().item(), atol=1e-5, err_msg=edge)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MIXTURES])
def test_the_input_s_edges_sum_to_one_as_steps_grow(family, traced):
    """The embeddings are all that differs, so the line integral over them is the whole gap (unless routers jump)."""
    model, task = traced(family), make_task("subject_verb", n=4)
    errors = []
    for steps in (1, 64):
        ds = edge_attribution(model, task, method="inputs", steps=steps, exact=0)
        errors.append(abs(nodes(ds)["input"] - 1))
    assert errors[-1] < 0.1 and errors[-1] < errors[0]


def test_the_error_of_the_line_integral_falls(zoo_model):
    task = make_task("subject_verb", n=16)
    found = [nodes(edge_attribution(zoo_model, task, steps=steps, exact=0))["input"] for steps in (1, 4, 32)]
    errors = [abs(value - 1) for value in found]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


@pytest.mark.parametrize("family", ["gpt2", "llama", "granite", "gpt_neox"])
def test_activations_from_corrupted_to_clean_sum_to_patching_them(family, traced):
    """All heads of a layer together, and each MLP: the same runs with the bridge's hooks."""
    model, task = traced(family), make_task("subject_verb", n=4)
    prompts, clean, corrupted = tokens_of(model, task)
    ds = edge_attribution(model, task, method="activations", steps=64, exact=0)
    found, metric = nodes(ds), metric_of(prompts, range(4))
    low = metric(model.logits(corrupted.numpy())).mean().item()
    for layer in range(LAYERS):
        heads = sum(found[f"L{layer}H{head}"] for head in range(HEADS))
        for value, hook in ((heads, "attn.hook_z"), (found[f"MLP{layer}"], "mlp.hook_out")):
            name = f"blocks.{layer}.{hook}"
            kept = model.capture(clean.numpy(), [name])[1][name]
            patched = metric(model.logits(corrupted.numpy(), {name: lambda value, kept=kept: kept})).mean().item()
            np.testing.assert_allclose(value * gap_of(ds), patched - low, atol=0.02 * abs(gap_of(ds)) + 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_heads_that_write_little_are_scored_as_they_are_patched(method, fresh, words):
    """With writes this small the metric is linear in them, and the first order is all there is."""
    keep = {(layer, head): 1.0 for layer in range(LAYERS) for head in range(HEADS)}
    module, model = shrunk(fresh, words, keep=keep, strength=1e-3)
    with torch.no_grad():
        module.transformer.h[0].mlp.c_proj.weight *= 1e-3
    loaded, task = model(), make_task("subject_verb", n=8)
    expected = head_patching(loaded, task, draws=10)["effect"].values[1]
    found = edge_attribution(loaded, task, method=method, steps=8, exact=ALL)
    np.testing.assert_allclose(found["effect"].values[1], expected, atol=0.01 * abs(expected).max())
    writes_heads = np.array([str(edge).startswith("L") for edge in found["edge"].values])
    a, b = (found[name].values[writes_heads] for name in ("approximate", "exact"))
    if method != "inputs":  # there the gradient is also that of other embeddings
        np.testing.assert_allclose(a, b, atol=0.02 * abs(b).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_family_runs(family, method, traced):
    model, task = traced(family), make_task("subject_verb", n=3)
    ds = edge_attribution(model, task, method=method, steps=2, exact=6)
    graph = model.edges.graph
    assert check(ds) is ds and len(ds["edge"]) == 6
    assert ds["score"].shape == (len(graph.readers), len(graph.writers))
    assert (ds["score"].values[~graph.valid] == 0).all() and (ds["score"].values[graph.valid] != 0).mean() > 0.9
    top = ds["score"].values.ravel()[np.argsort(-abs(ds["score"].values).ravel())[:6]]
    np.testing.assert_array_equal(ds["approximate"].values, top)
    assert (ds.attrs["kv_heads"], ds.attrs["parallel"]) == (graph.kv_heads, int(family == "gpt_neox"))
    assert ds.attrs["steps"] == (1 if method == "eap" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_for_a_small_corruption_scores_are_the_exact_effects(family, traced):
    """A run from embeddings moved by a thousandth of the way: what is left is the first order, edge by edge."""
    model = traced(family)
    edges, trunk, graph = model.edges, model.trunk, model.edges.graph
    _, clean, corrupted = tokens_of(model, make_task("subject_verb", n=2))
    source, whole = trunk.record(corrupted), trunk.record(clean)
    step, block = 0.001 * (whole.inputs[0] - source.inputs[0]), trunk.parts[0].block

    def move(part, args, kwargs):
        kwargs = {name: value + step if name == "hidden_states" else value for name, value in kwargs.items()}
        return (args[0] + step, *args[1:]) if args else args, kwargs

    handle = block.register_forward_pre_hook(move, with_kwargs=True)
    target = trunk.record(corrupted)
    handle.remove()
    weights = torch.randn(32, generator=torch.Generator().manual_seed(5))

    def metric(last):
        return trunk.norm(last) @ weights

    delta = edges.differences(target, source, 0, source.attention)
    first = torch.zeros(2, *graph.valid.shape)
    for readers, before, grads in edges.slopes(metric, source.inputs[0], source):
        first[:, readers, :before] = torch.einsum("brpd,bwpd->brw", grads, delta[:, :before])
    strongest = first.abs().amax(0).flatten().argsort(descending=True)[:12].tolist()
    base, largest = metric(source.inputs[-1][:, -1]), first.abs().max()
    for cell in strongest:
        reader, writer = divmod(cell, len(graph.writers))
        layer, head, kind = graph.reader_cells[reader].tolist()
        added = edges.added(target, source, writer, 0)
        last = edges.patched(max(layer, 0), ("q", "k", "v", "mlp", "logits")[kind], [head], added[None], source, 0)
        exact = metric(last) - base
        gap = (exact - first[:, reader, writer]).abs().max()
        assert gap < 0.05 * exact.abs().max() + 1e-3 * largest, graph.name(reader, writer)


def test_the_rank_correlation_is_spearman_s(traced):
    ds = edge_attribution(traced("llama"), make_task("subject_verb", n=4), steps=2, exact=25)
    a, b = (ds[name].values.argsort().argsort() for name in ("approximate", "exact"))
    expected = 1 - 6 * ((a - b) ** 2).sum() / (25 * (25**2 - 1))
    np.testing.assert_allclose(ds.attrs["spearman"], expected, atol=1e-9)
    assert edge_attribution(traced("llama"), make_task("subject_verb", n=4), exact=0).attrs["spearman"] == 0


def test_a_probability_metric_is_differentiated_too(traced):
    ds = edge_attribution(traced("gpt2"), make_task("greater_than", n=6), steps=64, exact=10)
    assert ds.attrs["metric_name"] == "prob_diff"
    np.testing.assert_allclose(nodes(ds)["input"], 1, atol=0.05)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_prompts_of_several_lengths_are_scored_alike_in_any_batch(batch, traced):
    model, task = traced("gpt2"), make_task("ioi", n=6, corruption="value_swap")
    ds = edge_attribution(model, task, steps=2, exact=20, batch=batch)
    whole = edge_attribution(model, task, steps=2, exact=20)
    for name in ("score", "score_low", "score_high", "exact"):
        np.testing.assert_allclose(ds[name].values, whole[name].values, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": -1}, {"exact": -1}])
def test_steps_and_exact_are_counts(options, traced):
    with pytest.raises(AnalysisError, match=r"(steps is .* must be 1|exact is .* must be 0) or more"):
        edge_attribution(traced("gpt2"), make_task("subject_verb", n=4), **options)


def test_without_a_trunk_the_reason_is_given(traced):
    with pytest.raises(ModelError, match=r"cannot be told apart \(the weights are folded"):
        edge_attribution(traced("gpt2", fold=True), make_task("subject_verb", n=4))


def test_a_result_keeps_the_contract_on_disk(traced, tmp_path):
    ds = edge_attribution(traced("llama"), make_task("subject_verb", n=4), steps=2, exact=5)
    again = store.load(store.save(ds, tmp_path / "result.nc"))
    xr.testing.assert_equal(again, ds)
    assert again.attrs == ds.attrs and again["edge"].values.tolist() == ds["edge"].values.tolist()
    assert (ds.attrs["analysis"], ds.attrs["primary"], ds["score"].attrs["signed"]) == ("edge_attribution", "score", 1)
    assert "positive = restoring the clean value helps" in ds.attrs["sign"]
