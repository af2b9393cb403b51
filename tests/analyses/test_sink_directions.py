"""Directions through an MLP against hand-set MLPs of known outputs, and against loops over plain transformers."""

import math

import numpy as np
import planted_sinks as planted
import pytest
import torch
from planted_sinks import Plant

from workbench.analyses import AnalysisError
from workbench.analyses.secondary_sinks import secondary_sinks
from workbench.analyses.sink_directions import ALPHAS, sink_directions
from workbench.models.load import wrap
from workbench.progress import Cancelled, reporting
from workbench.tasks import make_task

LENGTH, ROWS, DEPTH, LAYER = 40, 8, 4, 3
SMALL = {"length": 14, "sequences": 8, "batch": 2, "cosine": 0.35}
PLANTS = [Plant(".", LAYER, 6, 50.0), Plant("to", LAYER, 6, -80.0)]
STEPS = [sign * alpha for sign in (1, -1) for alpha in ALPHAS]


def task():
    return make_task("ioi", n=8)


def planted_model(words, plants=PLANTS, **options):
    return wrap(planted.llama(words, plants, **options), words, override=True)


def run(model, **changes):
    return sink_directions(model, task(), **{"length": LENGTH, "sequences": ROWS, "batch": 3} | changes)


def by_step(ds, name, component):
    """Values of one direction, by signed alpha as in STEPS."""
    return np.concatenate([ds[name].sel(component=component, measured=sign).values for sign in ("+", "-")], -1)


@pytest.mark.parametrize("topped", [False, True])
def test_an_mlp_that_writes_one_direction_gives_cosines_of_one(topped, words):
    ds = run(planted_model(words, topped=topped))
    assert ds.attrs["layer"] == LAYER
    along = 100 + 2 * topped  # two planted sinks, each with a top-up of BOS
    to_block = math.cos(math.atan2(planted.R, along))
    output = ds["norm"].values > 0
    np.testing.assert_allclose(abs(ds["cosine"].sel(module="block output")).values[output], to_block, rtol=1e-5)
    np.testing.assert_allclose(abs(ds["cosine"].sel(module="MLP output")).values[output], float(topped), atol=1e-6)
    assert output.all()
    np.testing.assert_allclose(ds["agreement"], [1, float(topped)], rtol=1e-6)
    np.testing.assert_allclose(ds["cosine_null"].sel(module="block output"), to_block, rtol=1e-5)  # so has any input
    np.testing.assert_allclose(ds["cosine_null_high"].sel(module="block output"), to_block, rtol=1e-5)
    np.testing.assert_array_equal(ds["cosine_null_low"], -ds["cosine_null_high"])


def written(flags):
    """What the two planted neurons write along the primary direction, by the flags of an input."""
    reads = planted.rms(0)
    found = 0.0
    for plant, flag in zip(PLANTS, flags, strict=True):
        opened = planted.silu(planted.GATE * reads * flag) * reads * flag
        found += plant.size * opened / planted.silu(planted.GATE)
    return found


def test_norms_of_planted_directions_have_a_closed_form(words):
    model = planted_model(words, topped=False)
    ds = run(model, sequences=ROWS)
    tokens = task().documents(words, length=LENGTH, count=ROWS, bos=True)
    ids = [words.convert_tokens_to_ids(plant.word) for plant in PLANTS]
    inputs = model.plain.model.embed_tokens.weight[ids].double().numpy() / planted.rms(0)  # attention writes nothing
    counts = np.array([(tokens[:, 1:] == token).sum() for token in ids])
    assert ds.attrs["sinks"] == counts.sum() and ds["tokens"].sum() == counts.sum()
    share, size = counts / counts.sum(), np.linalg.norm(inputs[0])  # all embeddings have one norm
    assert ds.attrs["input_norm"] == pytest.approx(size, rel=1e-6)
    mean, apart = share @ inputs, inputs[0] - inputs[1]
    apart *= np.sign(apart[abs(apart).argmax()])
    assert list(ds["component"].values) == ["mean", "PC1"]
    spread = np.linalg.norm(apart) * math.sqrt(share[0] * share[1])
    np.testing.assert_allclose(ds["extent"], np.array([np.linalg.norm(mean), spread]) / size, rtol=1e-5)
    np.testing.assert_allclose(ds["explained"], [0, 1], rtol=1e-5)
    np.testing.assert_allclose(ds["power"], np.array([mean @ mean, spread**2]) / size**2, rtol=1e-5)
    for name, direction in (("mean", mean), ("PC1", apart)):
        unit = direction / np.linalg.norm(direction)
        expected = [written(alpha * size * unit[2:4]) for alpha in STEPS]
        np.testing.assert_allclose(by_step(ds, "norm", name), np.abs(expected), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.sign(by_step(ds, "cosine", name)[0]), np.sign(expected))
    low, high = np.sort([(abs(written(inputs[i, 2:4]))) for i in (0, 1)])
    assert low - 1e-3 <= ds["sink_norm_low"] <= ds["sink_norm"] <= ds["sink_norm_high"] <= high + 1e-3


def test_sinks_with_one_input_have_no_components_unless_others_are_taken_in(words):
    """A GPT-2 in which a word is a sink at even positions only: the same word at odd ones is the paper's comparison."""
    model = wrap(planted.gpt2(words, ".", LAYER, 6, 50.0), words, override=True)
    with pytest.raises(AnalysisError, match=rf"tokens of layer {LAYER} give its MLP one and the same input"):
        run(model, sequences=12)
    ds = run(model, sequences=12, among="balanced")
    inner = model.plain.transformer
    word, place = inner.wte.weight[words.convert_tokens_to_ids(".")], inner.wpe.weight[[2, 1]]
    even, odd = torch.nn.functional.layer_norm(word + place, [planted.WIDTH], eps=planted.EPS).double().detach().numpy()
    count = ds.attrs["sample"] - ds.attrs["sinks"]
    share = count / ds.attrs["sample"]
    assert 0 < count <= ds.attrs["sinks"] and list(ds["component"].values) == ["mean", "PC1"]
    apart = (even - odd) / np.linalg.norm(even - odd)
    apart *= np.sign(apart[abs(apart).argmax()])
    size, spread = np.linalg.norm(even), np.linalg.norm(even - odd) * math.sqrt(share * (1 - share))
    np.testing.assert_allclose(ds["extent"].sel(component="PC1"), spread / size, rtol=1e-5)
    np.testing.assert_allclose(ds["explained"].sel(component="PC1"), 1, rtol=1e-5)
    mlp = inner.h[LAYER].mlp
    weight, bias, out = (p.double().detach().numpy() for p in (mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight))
    expected = [np.maximum(alpha * size * apart @ weight + bias, 0) @ out for alpha in STEPS]
    np.testing.assert_allclose(by_step(ds, "norm", "PC1"), np.linalg.norm(expected, axis=1), rtol=1e-4, atol=1e-5)
    assert (by_step(ds, "cosine", "PC1")[:, by_step(ds, "norm", "PC1") == 0] == 0).all()


def observed(module, family, tokens, layer):
    """Of plain transformers, MLP inputs and outputs and the output of a block; and its MLP, as a function."""
    block = (module.transformer.h if family == "gpt2" else module.model.layers)[layer]
    seen = {}
    block.mlp.register_forward_hook(lambda part, args, out: seen.update(given=args[0], out=out))
    block.register_forward_hook(lambda part, args, out: seen.update(hidden=out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        module(torch.from_numpy(tokens))
    kept = {name: value.double().numpy() for name, value in seen.items()}

    def pushed(vector):
        with torch.no_grad():
            return block.mlp(torch.from_numpy(vector)[None, None].float())[0, 0].double().numpy()

    return kept, pushed


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("kind", ["any", "secondary"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_every_number_equals_its_definition_written_out(family, kind, fresh, words):
    depth = {"n_layer": DEPTH} if family == "gpt2" else {"num_hidden_layers": DEPTH}
    model = wrap(fresh(family, **depth), words, override=True)
    given = SMALL | {"window": "all", "sequences": 24, "batch": 6}
    ds = sink_directions(model, task(), kind=kind, components=3, **given)
    sinks = secondary_sinks(model, task(), **given)
    label, primary = sinks["label"].values, sinks["primary_pos"].values
    wanted = (label == 2) if kind == "secondary" else (label > 0)
    wanted &= np.arange(given["length"]) > primary[:, None]
    made = sinks["creation"].values[wanted].tolist()
    layer = max(range(DEPTH), key=lambda at: (made.count(at), -at))
    chosen = wanted & (sinks["creation"].values == layer)
    assert (ds.attrs["layer"], ds.attrs["sinks"]) == (layer, chosen.sum())
    assert ds["tokens"].values.tolist() == chosen.sum(1)[ds["prompt"].values].tolist()
    tokens = task().documents(model.tokenizer, length=given["length"], count=given["sequences"], bos=model.bos)
    seen, pushed = observed(fresh(family, **depth), family, tokens, layer)
    inputs, outputs = seen["given"][chosen], seen["out"][chosen]
    rows = np.flatnonzero(chosen.any(1))
    size, mean = np.mean([np.linalg.norm(x) for x in inputs]), inputs.mean(0)
    values, vectors = np.linalg.eigh(np.cov(inputs.T, bias=True))
    directions = {"mean": mean / np.linalg.norm(mean)}
    for number in range(1, ds.sizes["component"]):
        axis = vectors[:, -number]
        directions[f"PC{number}"] = axis * np.sign(axis[abs(axis).argmax()])
        at = ds.sel(component=f"PC{number}")
        assert at["explained"] == pytest.approx(values[-number] / values.sum(), rel=1e-4)
        assert at["extent"] == pytest.approx(math.sqrt(values[-number]) / size, rel=1e-4)
    assert list(ds["component"].values) == list(directions) and len(directions) > 1
    for name, spot in (("block output", "hidden"), ("MLP output", "out")):
        there = [seen[spot][row, primary[row]] for row in rows]
        to = np.mean([v / np.linalg.norm(v) for v in there], 0)
        assert ds["agreement"].sel(module=name) == pytest.approx(np.linalg.norm(to), rel=1e-5)
        for component, direction in directions.items():
            found = [pushed(alpha * size * direction) for alpha in STEPS]
            near = by_step(ds.sel(module=name), "cosine", component)
            np.testing.assert_allclose(near, [cosine(out, to) for out in found], atol=2e-4)
            np.testing.assert_allclose(by_step(ds, "norm", component), np.linalg.norm(found, axis=1), rtol=1e-3)
        own = [cosine(out, to) for out in outputs]
        assert ds["sink_cosine"].sel(module=name) == pytest.approx(np.median(own), abs=1e-5)
    _check_null(ds, pushed, size)


def _check_null(ds, pushed, size):
    """Random directions are those of any other generator: as many of another one's norms lie inside the band."""
    rng, last = np.random.default_rng(99), len(ALPHAS) - 1
    drawn = rng.normal(size=(200, len(pushed(np.zeros(32)))))
    norms = np.array([np.linalg.norm(pushed(ALPHAS[last] * size * v / np.linalg.norm(v))) for v in drawn])
    at = ds.isel(size=last)
    inside = (norms >= at["norm_null_low"].item()) & (norms <= at["norm_null_high"].item())
    assert 0.86 < inside.mean() <= 1
    random = ds["norm_random"].values
    np.testing.assert_allclose(ds["norm_null_low"], np.quantile(random, 0.025, axis=1))
    np.testing.assert_allclose(ds["norm_null_high"], np.quantile(random, 0.975, axis=1))
    near = abs(ds["cosine_random"])
    assert ((near <= ds["cosine_null_high"]).mean("seed") == 0.95).all()
    np.testing.assert_allclose(ds["cosine_null"], near.median("seed"))


def test_batches_change_nothing_and_a_stopped_run_is_the_first_sequences(traced):
    model, more = traced("llama"), SMALL | {"kind": "any", "window": "all"}
    whole, one = sink_directions(model, task(), **more), sink_directions(model, task(), **more | {"batch": 8})
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], one[name], rtol=1e-3, atol=1e-4)
    with reporting(lambda what, done, total: "layer" not in what or done < 2):
        part = sink_directions(model, task(), **more)
    assert part.sizes["prompt"] == part.attrs["n"] == 4
    np.testing.assert_array_equal(part["tokens"], whole["tokens"][:4])
    with (
        reporting(lambda what, done, total: "layer" in what or done < 2),
        pytest.raises(Cancelled, match="before the sinks were found"),
    ):
        sink_directions(model, task(), **more)


def test_a_model_without_such_sinks_says_what_else_to_look_at(fresh, words):
    model = wrap(fresh("llama", num_hidden_layers=DEPTH, initializer_range=0.02), words, override=True)
    with pytest.raises(AnalysisError, match=r"8 sequences of 14 tokens.*there are no secondary sinks.*window='all'"):
        sink_directions(model, task(), **SMALL | {"cosine": 0.99})
    with pytest.raises(AnalysisError, match=r"no later tokens that are sinks.*in one layer; read longer"):
        sink_directions(model, task(), kind="any", window="all", **SMALL | {"cosine": 0.99})
    with pytest.raises(AnalysisError, match="components is 0"):
        sink_directions(model, task(), components=0)


def test_two_sinks_are_too_few(words):
    dots = secondary_sinks(planted_model(words, PLANTS[:1]), task(), length=LENGTH, sequences=1)["token"] == "."
    assert dots.sum() == 2
    with pytest.raises(AnalysisError, match=r"at most 2 of the secondary sinks begin in one layer.*need 3"):
        run(planted_model(words, PLANTS[:1]), sequences=1)


def test_an_mlp_that_cannot_be_called_or_reads_more_is_refused(traced, words):
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.3}
    module = OPTForCausalLM(OPTConfig(vocab_size=len(words), word_embed_proj_dim=32, **shape)).eval()
    more = SMALL | {"kind": "any", "window": "all"}
    with pytest.raises(AnalysisError, match="no module for its MLP"):
        sink_directions(wrap(module, words, override=True), task(), **more)
    model = traced("gpt2")
    mlp = model.scanner.mlps[sink_directions(model, task(), **more).attrs["layer"]]
    mixing = mlp.register_forward_hook(lambda part, args, out: out + args[0].mean(1, keepdim=True))
    with mixing, pytest.raises(AnalysisError, match="it reads more than its input"):
        sink_directions(model, task(), **more)
