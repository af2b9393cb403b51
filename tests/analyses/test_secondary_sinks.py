"""Secondary sinks against planted ones, and against loops over the hidden states of plain transformers."""

import math
from itertools import pairwise

import numpy as np
import planted_sinks as planted
import pytest
import torch
from planted_sinks import LAYERS, Plant

from workbench.analyses import AnalysisError
from workbench.analyses._ranks import rank_correlation, spearman
from workbench.analyses._sinks import Rule, windows
from workbench.analyses._stages import STAGES
from workbench.analyses.secondary_sinks import secondary_sinks
from workbench.models.load import wrap
from workbench.progress import reporting
from workbench.tasks import make_task

LENGTH, ROWS, DEPTH = 40, 6, 4
SMALL = {"length": 14, "sequences": 8, "batch": 2, "cosine": 0.35}
PLANTS = [Plant(".", 3, 6, 50.0), Plant("to", 2, 6, -80.0), Plant("the", 1, 7, 60.0)]
NONE, PRIMARY, SECONDARY, NOISE = range(4)


def task():
    return make_task("ioi", n=8)


def planted_result(words, plants=PLANTS, **changes):
    model = wrap(planted.llama(words, plants, topped=changes.pop("topped", True)), words, override=True)
    return secondary_sinks(model, task(), length=LENGTH, sequences=ROWS, batch=4, **changes)


def test_planted_sinks_are_found_exactly_and_nothing_else(words):
    ds = planted_result(words)
    assert (ds["primary_pos"] == 0).all() and (ds["window_start"] == 1).all() and (ds["window_stop"] == 7).all()
    expected = {"<bos>": (PRIMARY, 1, 6), ".": (SECONDARY, 3, 3), "to": (SECONDARY, 2, 4), "the": (PRIMARY, 1, 6)}
    levels = np.zeros((3, LAYERS, LAYERS))
    for row in range(ROWS):
        for key, token in enumerate(ds["token"].values[row]):
            kind, creation, lifetime = expected.get(token, (NONE, -1, 0))
            found = ds.sel(prompt=row, key_pos=key)
            assert (found["label"], found["creation"], found["lifetime"]) == (kind, creation, lifetime)
            if kind:
                levels[kind - 1, creation, lifetime - 1] += 1
    np.testing.assert_array_equal(ds["level_count"], levels)
    tokens = ds["token"].values
    assert ds["count"].values.tolist() == [(tokens == "the").sum(), np.isin(tokens, [".", "to"]).sum(), 0]


def test_norms_and_cosines_of_planted_sinks_are_those_planted(words):
    ds = planted_result(words)
    tokens, size = ds["token"].values, {p.word: p.size for p in [planted.BOS, *PLANTS]}
    for row, key in np.argwhere(np.isin(tokens, list(size))):
        amount, found = size[tokens[row, key]], ds.sel(prompt=row, key_pos=key)
        amount += tokens[row, key] == "<bos>"  # its own top-up with "the", in the layer that creates it
        np.testing.assert_allclose(found["mlp_norm"], abs(amount), rtol=1e-5)
        norm = found["residual_norm"].values[found["creation"].item()]
        np.testing.assert_allclose(norm, math.hypot(planted.R, amount), rtol=1e-5)
        if tokens[row, key] == ".":
            bos = math.hypot(planted.R, 103)
            near = 50 * 103 / (math.hypot(planted.R, 50) * bos)
            assert abs(found["cosine"].values[4] - near) < planted.R**2 / (50 * 100)  # by their embeddings' cosine
    np.testing.assert_allclose(ds["spearman_lifetime"], spearman(*_columns(ds, "lifetime")), atol=1e-12)


def _columns(ds, name):
    chosen = (ds["label"].values > 0) & (ds["key_pos"].values > 0)
    return ds["mlp_norm"].values[chosen], ds[name].values[chosen]


def test_the_stages_of_a_planted_sink_are_aligned_as_planted(words):
    ds = planted_result(words, [PLANTS[0]])
    own, shared, up = planted.silu(planted.GATE), planted.silu(planted.GATE_SHARED), planted.UP_SHARED
    gate = planted.GATE_SHARED**2 / (planted.GATE**2 + planted.GATE_SHARED**2)
    expected = {"gate": gate, "activated gate": shared**2 / (own**2 + shared**2), "up": up**2 / (1 + up**2)}
    expected |= {"product": (shared * up) ** 2 / (own**2 + (shared * up) ** 2), "output": 1}
    assert list(ds["module"].values) == list(STAGES)
    for stage, cosine in expected.items():
        for end in ("", "_low", "_high"):
            np.testing.assert_allclose(ds[f"alignment{end}"].sel(measured="sink", module=stage), cosine, atol=2e-5)
        np.testing.assert_allclose(ds["alignment"].sel(measured="control", module=stage), 0, atol=1e-6)
    assert abs(ds["alignment"].sel(measured="sink", module="input")) < planted.R / 100
    assert ds.attrs["controls"] == "other tokens, no sinks"
    tokens = ds["token"].values
    assert ds["alignment_n"].values.tolist() == [(tokens == ".").sum(), tokens.size - ROWS - (tokens == ".").sum()]


def test_a_token_is_compared_with_itself_where_it_is_no_sink(words):
    """A GPT-2 with an MLP without a gate, in which a word is a sink at even positions only."""
    model = wrap(planted.gpt2(words, ".", 3, 6, 50.0), words, override=True)
    ds = secondary_sinks(model, task(), length=LENGTH, sequences=12)
    dots = ds["token"].values == "."
    even = dots & (ds["key_pos"].values % 2 == 0)
    np.testing.assert_array_equal(ds["label"].values == SECONDARY, even)
    np.testing.assert_array_equal(ds["creation"].values[even], 3)
    np.testing.assert_array_equal(ds["lifetime"].values[even], 3)
    np.testing.assert_allclose(ds["mlp_norm"].values[even], 50, rtol=1e-5)
    assert ds["count"].values.tolist() == [0, even.sum(), 0] and ds.attrs["controls"] == "same token ids, no sinks"
    assert ds["alignment_n"].values.tolist() == [even.sum(), (dots & ~even).sum()] and (dots & ~even).any()
    assert list(ds["module"].values) == ["input", "up", "product", "output"]
    output = ds["alignment"].sel(module="output").values
    np.testing.assert_allclose(output, [1, 0], atol=1e-5)


def test_noise_and_the_papers_constants(words):
    """Of 8 layers the paper's constants make a primary of every sink, since 8 - 15 is below any lifetime."""
    ds = planted_result(words, preset="paper")
    assert ds["count"].values[0] == (planted_result(words)["count"]).sum() and ds["count"].values[1:].sum() == 0
    paper, relative = Rule(0.9, "paper", "norm", 48), Rule(0.9, "relative", "norm", 48)
    lifetimes = np.arange(49)
    expected = [NONE] + [NOISE] * 4 + [SECONDARY] * 28 + [PRIMARY] * 16
    assert paper.label(lifetimes).tolist() == relative.label(lifetimes).tolist() == expected
    assert Rule(0.9, "relative", "norm", 24).label(np.array([2, 3, 16, 17])).tolist() == [3, 2, 2, 1]
    assert Rule(0.9, "relative", "norm", 4).label(np.array([0, 1, 2, 3])).tolist() == [0, 3, 2, 1]
    assert Rule(0.9, "paper", "norm", 10).label(np.array([1, 9])).tolist() == [1, 1]


def test_windows_follow_the_norm_of_the_primary():
    curves = np.array([[1, 9, 9.5, 9, 2, 3], [5, 4, 3, 1, 0.5, 0.4], [1, 2, 3, 4, 9, 9.1], [1, 2, 3, 4, 5, 9]])
    start, stop = windows(curves)
    assert start.tolist() == [1, 0, 4, 5] and stop.tolist() == [4, 3, 6, 6]
    assert [part.tolist() for part in windows(np.array([[3.0]]))] == [[0], [1]]


def test_a_random_model_has_no_secondary_sink(fresh, words):
    model = wrap(fresh("llama", num_hidden_layers=LAYERS, initializer_range=0.02), words, override=True)
    ds = secondary_sinks(model, task(), length=LENGTH, sequences=ROWS)
    chosen = (ds["label"] != NONE) & (ds["key_pos"] != ds["primary_pos"])
    assert not chosen.any() and ds["count"].values.tolist() == [0, 0, 0]
    assert ds.attrs["controls"] == "none: no secondary sink" and ds["alignment_n"].values.tolist() == [0, 0]
    for name in ("spearman_lifetime", "spearman_score", "alignment"):
        assert (ds[name] == 0).all() and (ds[f"{name}_low"] == -1).all() and (ds[f"{name}_high"] == 1).all()
    assert ds["spearman_lifetime_p"] == 1 and ds.attrs["sinks"] == 0


def observed(module, family, tokens):
    """By layer, of plain transformers: hidden, patterns, MLP inputs and outputs, and the stages between."""
    module.set_attn_implementation("eager")
    blocks = module.transformer.h if family == "gpt2" else module.model.layers
    hidden, seen = [], {name: [] for name in ("input", "gate", "activated gate", "up", "product", "output")}

    def keep(name, given=False):
        return lambda part, args, found: seen[name].append((args[0] if given else found).double().numpy())

    for block in blocks:
        block.register_forward_hook(lambda m, a, out: hidden.append(out[0] if isinstance(out, tuple) else out))
        block.mlp.register_forward_hook(keep("input", given=True))
        block.mlp.register_forward_hook(keep("output"))
        first, last = ("c_fc", "c_proj") if family == "gpt2" else ("up_proj", "down_proj")
        getattr(block.mlp, first).register_forward_hook(keep("up"))
        getattr(block.mlp, last).register_forward_hook(keep("product", given=True))
        if family == "llama":
            block.mlp.gate_proj.register_forward_hook(keep("gate"))
            block.mlp.act_fn.register_forward_hook(keep("activated gate"))
    with torch.inference_mode():
        patterns = module(torch.from_numpy(tokens), output_attentions=True).attentions
    stages = {name: values for name, values in seen.items() if values}
    return [h.double().numpy() for h in hidden], [p.double().numpy() for p in patterns], stages


def birth_and_removal(norms):
    """Layers of the steepest rise, and of the steepest drop after it."""
    steps = [after - before for before, after in pairwise(norms)]
    start = steps.index(max(steps)) + 1 if max(steps) > 0 else 0
    later = steps[start:]
    return start, start + later.index(min(later)) + 1 if later and min(later) < 0 else len(norms)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("window", ["norm", "all"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_number_equals_its_definition_written_out(family, window, fresh, words):
    depth = {"n_layer": DEPTH} if family == "gpt2" else {"num_hidden_layers": DEPTH}
    model = wrap(fresh(family, **depth), words)
    ds = secondary_sinks(model, task(), window=window, **SMALL)
    rows, length = SMALL["sequences"], SMALL["length"]
    tokens = task().documents(model.tokenizer, length=length, count=rows, bos=True)
    hidden, patterns, stages = observed(fresh(family, **depth), family, tokens)
    aligned, others = [], []
    for row in range(rows):
        norms = [[np.linalg.norm(hidden[layer][row, key]) for layer in range(DEPTH)] for key in range(length)]
        primary = 0 if sum(norms[0]) > sum(norms[1]) else 1
        start, stop = birth_and_removal(norms[primary])
        layers = range(DEPTH) if window == "all" else range(start, stop)
        assert ds["primary_pos"].values[row] == primary
        assert (ds["window_start"].values[row], ds["window_stop"].values[row]) == (start, stop)
        for key in range(length):
            near = [cosine(hidden[layer][row, key], hidden[layer][row, primary]) for layer in range(DEPTH)]
            np.testing.assert_allclose(ds["cosine"].values[row, :, key], near, atol=1e-5)
            np.testing.assert_allclose(ds["residual_norm"].values[row, :, key], norms[key], rtol=1e-5)
            score = []
            for layer in range(DEPTH):
                seen = [patterns[layer][row, head, query, key] for head in range(4) for query in range(key, length)]
                score.append(sum(seen) / 4 / (length - key))
            np.testing.assert_allclose(ds["sink_score"].values[row, :, key], score, atol=1e-6)
            alive = [layer for layer in layers if key >= primary and abs(near[layer]) > SMALL["cosine"]]
            found = ds.isel(prompt=row, key_pos=key)
            assert found["lifetime"] == len(alive) and found["creation"] == (alive[0] if alive else -1)
            kind = PRIMARY if key == primary else [NONE, NOISE, SECONDARY, PRIMARY, PRIMARY][len(alive)]
            assert found["label"] == kind
            output = np.linalg.norm(stages["output"][alive[0]][row, key]) if alive else 0
            np.testing.assert_allclose(found["mlp_norm"], output, rtol=1e-5)
            read = [score[layer + 1] for layer in alive if layer + 1 < DEPTH]
            np.testing.assert_allclose(found["score"], np.mean(read) if read else 0, atol=1e-6)
            if kind == SECONDARY:
                where = alive[0]
                aligned.append([cosine(stages[s][where][row, key], stages[s][where][row, primary]) for s in stages])
                others.append((tokens[row, key], where))
    assert len(aligned) > 2 and ds["alignment_n"].values[0] == len(aligned)
    order = [list(stages).index(name) for name in ds["module"].values]
    assert len(order) == len(stages)
    np.testing.assert_allclose(ds["alignment"].values[0], np.mean(aligned, 0)[order], atol=1e-5)
    _check_controls(ds, tokens, stages, others, order)


def _check_controls(ds, tokens, stages, sinks, order):
    """Controls: for each layer that creates sinks, tokens of those sinks' ids that are none; else any that are none."""
    for same in (True, False):
        found = []
        for layer in sorted({layer for _, layer in sinks}):
            ids = {token for token, where in sinks if where == layer}
            for row, key in np.argwhere(ds["label"].values == NONE):
                primary = ds["primary_pos"].values[row]
                if key > primary and (not same or tokens[row, key] in ids):
                    found.append([cosine(stages[s][layer][row, key], stages[s][layer][row, primary]) for s in stages])
        if found:
            np.testing.assert_allclose(ds["alignment"].values[1], np.mean(found, 0)[order], atol=1e-5)
            assert ds["alignment_n"].values[1] == len(found)
            assert ds.attrs["controls"] == ("same token ids, no sinks" if same else "other tokens, no sinks")
            return


def test_the_null_finds_the_repeats_of_a_token_and_nothing_else(words):
    """In the planted model two tokens are alike only if they are the same word, so the null can be counted by hand."""
    ds = planted_result(words, [PLANTS[0]])
    tokens, label = ds["token"].values, ds["label"].values
    repeats = [
        [sum(tokens[row, key] == other for key in range(1, LENGTH)) - 1 for key, other in enumerate(tokens[row])]
        for row in range(ROWS)
    ]
    allowed = [{repeats[row][key] for key in range(2, LENGTH) if label[row, key] == NONE} for row in range(ROWS)]
    assert (ds["count_null"].sel(component=["secondary", "noise"]) == 0).all()  # as long as the whole window
    most, least = sum(map(max, allowed)), sum(map(min, allowed))
    drawn = ds["count_null"].sel(component="primary")
    assert (drawn >= least).all() and (drawn <= most).all() and drawn.max() > 0
    np.testing.assert_allclose(ds["level_null"].sum(("layer", "size")), ds["count_null"].mean("seed"))
    assert (
        ds["level_null"].sel(component="primary", layer=1, size=6) == drawn.mean()
        and ds.attrs["null_sequences"] == ROWS
    )


def test_batches_change_nothing_and_a_stopped_run_is_the_first_sequences(traced):
    model = traced("llama")
    whole, one = secondary_sinks(model, task(), **SMALL), secondary_sinks(model, task(), **{**SMALL, "batch": 8})
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], one[name], atol=1e-5)
    with reporting(lambda what, done, total: done < 1):
        part = secondary_sinks(model, task(), **SMALL)
    assert part.sizes["prompt"] == part.attrs["n"] == 2
    np.testing.assert_array_equal(part["label"], whole["label"][:2])


def test_experts_and_other_mlps_show_the_stages_they_have(fresh, words):
    for family, expected in {"mixtral": ["input", "output"], "phi3": ["input", "product", "output"]}.items():
        ds = secondary_sinks(wrap(fresh(family), words, override=True), task(), **SMALL)
        assert list(ds["module"].values) == expected


def test_rank_correlation_has_ties_an_interval_and_a_null():
    a, b = np.array([1.0, 2, 2, 3, 9]), np.array([1.0, 3, 2, 4, 5])
    ranks = np.array([[1, 2.5, 2.5, 4, 5], [1, 3, 2, 4, 5]])
    np.testing.assert_allclose(spearman(a, b), np.corrcoef(ranks)[0, 1], rtol=1e-12)
    rng = np.random.default_rng(0)
    pairs = [np.stack([x := rng.normal(size=8), -x + rng.normal(size=8) / 10]) for _ in range(6)]
    found = {name: float(value) for name, (_, value, _) in rank_correlation("r", "made up", pairs, 0).items()}
    assert found["r_low"] <= found["r"] <= found["r_high"] < -0.8 and found["r_p"] == 1 / 1001
    noise = [rng.normal(size=(2, 8)) for _ in range(6)]
    found = {name: float(value) for name, (_, value, _) in rank_correlation("r", "made up", noise, 0).items()}
    assert found["r_low"] < 0 < found["r_high"] and found["r_p"] > 0.05


@pytest.mark.parametrize("length", [0, 2, 129])
def test_a_length_the_model_cannot_take_is_refused(length, traced):
    with pytest.raises(AnalysisError, match=rf"length is {length}; this model takes 3 to 128"):
        secondary_sinks(traced("gpt2"), task(), length=length)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, float("nan")])
def test_a_threshold_outside_the_range_is_refused(value, traced):
    with pytest.raises(AnalysisError, match="cosine is"):
        secondary_sinks(traced("gpt2"), task(), cosine=value)
