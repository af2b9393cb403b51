"""The causal test on planted sinks whose loss is known, and against hooks on plain transformers."""

import math

import numpy as np
import planted_sinks as planted
import pytest
import torch
from planted_sinks import Plant
from torch.nn import functional as F

from workbench.analyses import AnalysisError
from workbench.analyses.secondary_sinks import secondary_sinks
from workbench.analyses.sink_ablation import sink_ablation
from workbench.models.load import wrap
from workbench.models.scan import Scanner
from workbench.progress import Cancelled, reporting
from workbench.tasks import make_task

LENGTH, ROWS = 40, 6
SMALL = {"length": 14, "sequences": 4, "batch": 2, "cosine": 0.35}
DEPTH = {"gpt2": {"n_layer": 4}, "llama": {"num_hidden_layers": 4}}
DOT = Plant(".", 3, 6, -50.0)


def task():
    return make_task("ioi", n=8)


@pytest.fixture(scope="module")
def models(words):
    """By dimension that head 0 writes to: load-bearing sinks where it is read, idle ones where it is not."""
    made = {name: planted.llama(words, [DOT], getattr(planted, name), topped=False) for name in ("READ", "UNREAD")}
    return {name: wrap(module, words, override=True) for name, module in made.items()}


def go(model, **given):
    return sink_ablation(model, task(), **{"length": LENGTH, "sequences": ROWS, "batch": 4, **given})


@pytest.fixture(scope="module")
def masked(models):
    """What masking gives, by the models' names."""
    return {name: go(model) for name, model in models.items()}


def expected_loss(words, tokens):
    """Loss of each sequence before and after the dots are masked: a query that sees no sink is disturbed."""
    plain, disturbed, found = math.log(len(words)), planted.disturbed(words), []
    for row in tokens:
        first = list(row).index(".")
        before = [plain if token in ("<bos>", ".") or key > first else disturbed for key, token in enumerate(row[:-1])]
        after = [plain if token in ("<bos>", ".") else disturbed for token in row[:-1]]
        found.append((np.mean(before), np.mean(after)))
    return np.array(found).T


def test_a_planted_load_bearing_sink_costs_what_it_must(masked, words):
    ds = masked["READ"]
    before, after = expected_loss(words, ds["token"].values)
    np.testing.assert_allclose(ds["loss_prompt"], before, atol=1e-3)
    sinks = ds.sel(component="secondary")
    np.testing.assert_allclose(sinks["loss_change_prompt"], after - before, atol=1e-3)
    np.testing.assert_allclose(sinks["loss_change"], (after - before).mean(), atol=1e-3)
    np.testing.assert_allclose(sinks["loss"], [before.mean(), after.mean()], atol=1e-3)
    assert 0 < sinks["loss_change_low"] <= sinks["loss_change"] <= sinks["loss_change_high"]
    assert sinks["loss_change_random"].max() < 1e-4 and sinks["p"] == 1 / 21
    assert sinks["load_bearing"] == 1 and sinks["verdict"] == "load-bearing"
    assert sinks["spots"].values.tolist() == [(row[:-1] == ".").sum() for row in ds["token"].values]
    assert sinks["lifetime"].values.tolist() == [3, 3]  # the mask leaves its residual as it is


def test_a_planted_idle_sink_costs_nothing(masked, words):
    ds = masked["UNREAD"]
    np.testing.assert_allclose(ds["loss_prompt"], math.log(len(words)), atol=1e-6)
    for name in ("loss_change", "loss_change_low", "loss_change_high", "loss_change_random"):
        np.testing.assert_allclose(ds[name], 0, atol=1e-6)
    assert ds["verdict"].values.tolist() == ["idle", "idle"] and (ds["p"] == 1).all()


def test_a_sink_nobody_attends_to_is_idle_beside_a_load_bearing_one(masked):
    ds = masked["READ"]
    assert ds["component"].values.tolist() == ["primary", "secondary"]
    assert abs(ds["loss_change"].sel(component="primary")) < 1e-3
    assert ds["verdict"].values.tolist() == ["idle", "load-bearing"]


def test_a_masked_sink_is_seen_by_itself_only(masked):
    """Head 0 of layer 4 then looks at itself alone; all others look at all tokens that are not masked, alike."""
    ds, expected = masked["READ"], []
    for row in ds["token"].values:
        for earlier, key in enumerate(np.flatnonzero(row[:-1] == ".")):
            even = 1 / (key + 1 - earlier)
            expected.append(np.mean([(1 + 3 * even) / 4, even, even, even]) / (LENGTH - key))  # layers 4 to 7
    score = ds["score"].sel(component="secondary")
    np.testing.assert_allclose(score.sel(measured="after"), np.mean(expected), rtol=1e-5)
    assert score.sel(measured="before") > 4 * np.mean(expected)
    primary = ds["score"].sel(component="primary", measured="after")
    np.testing.assert_allclose(primary, 1 / LENGTH, rtol=1e-5)  # the first token sees nothing else


def test_a_removed_sink_is_never_born(models, masked):
    """Ordinary tokens' MLPs write nothing here, so their mean is nothing."""
    ds = go(models["READ"], what="remove")
    assert ds["lifetime"].sel(measured="before").values.tolist() == [6, 3]
    assert ds["lifetime"].sel(measured="after").values.tolist() == [0, 0]
    assert ds["verdict"].values.tolist() == ["idle", "load-bearing"]
    assert ds["loss_change"].sel(component="secondary") > 0.9 * masked["READ"]["loss_change"].sel(component="secondary")
    zero = go(models["READ"], what="rescale", amount=0.0)
    for name in ("loss_change_prompt", "score", "lifetime", "loss_change_random"):
        np.testing.assert_allclose(zero[name], ds[name], atol=1e-6)


def test_a_rescaled_sink_keeps_its_direction(models):
    ds = go(models["UNREAD"], what="rescale", amount=100.0, unit="norm")
    assert ds.attrs["meaning"].endswith("norm 100")
    assert ds["lifetime"].sel(component="primary").values.tolist() == [6, 6]
    same = go(models["UNREAD"], what="rescale", amount=2.0)  # the dots' norm is 50
    sinks = [found["score"].sel(component="secondary") for found in (ds, same)]
    np.testing.assert_allclose(sinks[0], sinks[1], atol=1e-6)


def test_a_scanner_that_ignores_the_mask_is_refused(models, monkeypatch):
    run = Scanner.run
    monkeypatch.setattr(Scanner, "run", lambda *args, hide=None, **more: run(*args, **more))  # noqa: PLW0108
    with pytest.raises(AnalysisError, match=r"mask did not take effect in this family: token .* still gets attention"):
        go(models["READ"])


@pytest.mark.parametrize("what", ["remove", "rescale"])
def test_a_scanner_that_ignores_the_mlps_is_refused(what, models, monkeypatch):
    run = Scanner.run

    def deaf(self, tokens, read, *, mlps=None, **more):
        for layer, edit in (mlps or {}).items():  # called, but its result is not used
            edit(torch.zeros(*tokens.shape, planted.WIDTH))
            assert layer < planted.LAYERS
        return run(self, tokens, read, **more)

    monkeypatch.setattr(Scanner, "run", deaf)
    with pytest.raises(AnalysisError, match="did not take effect: the last residuals are the same to the last bit"):
        go(models["READ"], what=what)


def test_an_amount_that_changes_nothing_is_refused(models):
    with pytest.raises(AnalysisError, match="primary sink did not take effect"):
        go(models["READ"], what="rescale", amount=1.0)


def plain(fresh, family):
    """A random model of 4 layers with attention that takes any mask, and its blocks."""
    module = fresh(family, **DEPTH[family])
    module.set_attn_implementation("eager")
    return module, module.transformer.h if family == "gpt2" else module.model.layers


def plain_losses(fresh, family, tokens, hide=(), edits=()):
    """Loss of each sequence of plain transformers; hide (row, key, first layer); edits (row, key, layer, function)."""
    module, blocks = plain(fresh, family)
    length = tokens.shape[1]

    def masked(layer):
        def hook(part, args, kwargs):
            seen = torch.tril(torch.ones(length, length, dtype=torch.bool)).repeat(len(tokens), 1, 1, 1)
            for row, key, since in hide:
                if layer >= since:
                    seen[row, 0, :, key] &= torch.arange(length) == key
            return args, {**kwargs, "attention_mask": torch.zeros(seen.shape).masked_fill(~seen, -1e30)}

        return hook

    def edited(layer):
        def hook(part, args, found):
            found = found.clone()
            for row, key, where, edit in edits:
                if where == layer:
                    found[row, key] = edit(found[row, key])
            return found

        return hook

    for layer, block in enumerate(blocks):
        attention = block.attn if family == "gpt2" else block.self_attn
        attention.register_forward_pre_hook(masked(layer), with_kwargs=True)
        block.mlp.register_forward_hook(edited(layer))
    given = torch.from_numpy(tokens)
    with torch.inference_mode():
        logits = module(given).logits
        return [F.cross_entropy(row[:-1], ids[1:]).item() for row, ids in zip(logits, given, strict=True)]


def mlp_outputs(fresh, family, tokens):
    """[layer][row, key, d]."""
    (module, blocks), found = plain(fresh, family), []
    for block in blocks:
        block.mlp.register_forward_hook(lambda part, args, out: found.append(out))
    with torch.inference_mode():
        module(torch.from_numpy(tokens))
    return found


def chosen(sinks, component, row):
    """Positions of one kind in one sequence, by the result of `secondary_sinks`."""
    label = sinks["label"].values[row, :-1]
    if component == "own":
        return [5]
    return [int(sinks["primary_pos"][row])] if component == "primary" else np.flatnonzero(label == 2).tolist()


def born(sinks, row, key):
    creation, primary = int(sinks["creation"].values[row, key]), int(sinks["primary_pos"][row])
    return int(sinks["window_start"][row]) if key == primary or creation < 0 else creation


@pytest.mark.parametrize("what", ["mask", "remove", "rescale"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_losses_are_those_of_plain_transformers(family, what, fresh, words):
    """Every kind's change of loss, on a random model, with the interventions written as hooks."""
    model, rows, length = wrap(fresh(family, **DEPTH[family]), words), SMALL["sequences"], SMALL["length"]
    ds, sinks = sink_ablation(model, task(), what=what, own="5", **SMALL), secondary_sinks(model, task(), **SMALL)
    tokens = task().documents(model.tokenizer, length=length, count=rows, bos=True)
    np.testing.assert_allclose(ds["loss_prompt"], plain_losses(fresh, family, tokens), atol=1e-4)
    np.testing.assert_array_equal(ds["label"], sinks["label"])
    outputs = mlp_outputs(fresh, family, tokens)
    label, primary = sinks["label"].values, sinks["primary_pos"].values
    keys = np.arange(length)
    ordinary = (label == 0) & (keys > primary[:, None]) & (keys < length - 1) & (keys != 5)
    for component in ds["component"].values:
        hide, edits = [], []
        for row, key in [(r, key) for r in range(rows) for key in chosen(sinks, component, r)]:
            if not ds["spots"].sel(component=component).values[row]:
                continue  # fewer ordinary tokens than sinks, or none that a later layer reads
            where = born(sinks, row, key)
            hide.append((row, key, where + 1 if component == "secondary" else 0))
            others = ordinary.copy()
            others[row] = False
            mean = outputs[where][torch.from_numpy(others)].mean(0)
            edits.append((row, key, where, (lambda v, m=mean: m) if what == "remove" else (lambda v: v * 0.5)))
        given = {"hide": hide} if what == "mask" else {"edits": edits}
        after = plain_losses(fresh, family, tokens, **given)
        changed = ds.sel(component=component)["loss_change_prompt"].values
        np.testing.assert_allclose(changed, np.array(after) - ds["loss_prompt"].values, atol=2e-4)
        assert abs(changed).max() > 1e-3
    assert ds["component"].values.tolist() == ["primary", "secondary", "own"]


def test_controls_have_as_many_tokens_and_repeat(models):
    first, again = go(models["READ"], own="and"), go(models["READ"], own="and", batch=6)
    np.testing.assert_allclose(first["loss_change_random"], again["loss_change_random"], atol=1e-5)
    np.testing.assert_allclose(first["loss_change_prompt"], again["loss_change_prompt"], atol=1e-5)
    assert first.sizes["seed"] == 20
    own = first["spots"].sel(component="own").values
    assert own.tolist() == [(row[:-1] == "and").sum() for row in first["token"].values]


def test_a_stopped_run_is_the_first_sequences(models, masked):
    whole = masked["READ"]
    with reporting(lambda what, done, total: done < 1):
        part = go(models["READ"])
    assert part.sizes["prompt"] == part.attrs["n"] == 4
    np.testing.assert_allclose(part["loss_change_prompt"], whole["loss_change_prompt"][:, :4], atol=1e-6)
    with reporting(lambda what, done, total: "means" not in what or done < 1), pytest.raises(Cancelled, match="mean"):
        go(models["READ"], what="remove")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draws": 19}, "draws is 19; a 95 % band needs 20"),
        ({"amount": -1.0}, "amount is -1.0; give a factor of 0 or more"),
        ({"amount": float("inf"), "unit": "norm"}, "amount is inf; give a norm"),
        ({"own": "39"}, "there is no token '39' before the last position"),
        ({"own": "xyzzy"}, "there is no token 'xyzzy'"),
        ({"what": "remove", "sequences": 1}, "ask for 2 sequences or more"),
        ({"cosine": 1e-9}, "No sequence has an ordinary token"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, message, models):
    with pytest.raises(AnalysisError, match=message):
        go(models["READ"], **given)


def test_a_model_that_is_not_causal_is_refused(models, monkeypatch):
    monkeypatch.setattr(Scanner, "causal", lambda self: False)
    with pytest.raises(AnalysisError, match="not causal"):
        go(models["READ"])
