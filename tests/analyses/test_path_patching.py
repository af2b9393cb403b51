"""Path patching against hooks on plain transformers, transformer_lens' direct paths, planted heads, and itself."""

import functools
import json

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import FAMILIES
from test_head_patching import planted
from transformer_lens import patching
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from workbench import store
from workbench.analyses import AnalysisError, path_patching
from workbench.models.load import load, wrap
from workbench.models.paths import receiving, spread
from workbench.models.trunk import Trunk
from workbench.schema import check
from workbench.tasks import make_task

NAMED = "logits@END; L1H3.q+L0H1.k+L1H0.v@subject; L1H2.v@all"
STAGED = "logits@END; q@END; k@all; v@subject"
SIZE = 8  # of a head


@functools.cache
def plainly(folder):
    """The model with the fast way barred."""
    model = load(folder, device="cpu")
    vars(model).update(_trunk_or_reason="barred by the test", trunk=None)
    return model


@functools.cache
def deep(words):
    """A random GPT-2 of three layers, as transformers makes it."""
    torch.manual_seed(1)
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": 0}
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **sizes, **special)).eval()


def both(model, task, **options):
    prompts = task.encode(model.tokenizer, bos=model.bos)
    return prompts, path_patching(model, task, draws=10, **options)


def metric_of(logits, prompts):
    """Logit difference of each row at the last position."""
    last = logits[:, -1]
    rows = zip(last, prompts.answers, prompts.wrongs, strict=True)
    return torch.stack([row[right].mean() - row[wrong].mean() for row, right, wrong in rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stages", "freeze_mlps"), [(NAMED, False), (NAMED, True), (STAGED, False)])
def test_the_fast_way_equals_whole_passes_with_hooks(family, stages, freeze_mlps, traced, saved):
    task, options = make_task("subject_verb", n=3), {"stages": stages, "freeze_mlps": freeze_mlps, "draws": 10}
    fast, plain = (path_patching(model, task, **options) for model in (traced(family), plainly(saved(family))))
    assert fast.attrs["way"].startswith("recorded run") and "barred by the test" in plain.attrs["way"]
    assert fast["receiver"].values.tolist() == plain["receiver"].values.tolist()
    for receiver in fast["receiver"].values:
        for name in ("metric", "metric_clean", "metric_corrupted"):
            a, b = ((ds.sel(receiver=receiver) if name == "metric" else ds)[name].values for ds in (fast, plain))
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=f"{name} {receiver}")


@pytest.mark.parametrize("rows", [1, 17, 10**6])
def test_the_fast_way_in_small_pieces_with_places_of_their_own(rows, words, monkeypatch):
    """Three layers, two prompt lengths, positions that differ from prompt to prompt, receivers on two layers."""
    monkeypatch.setattr(Trunk, "rows", lambda *given: rows)
    fast, plain = wrap(deep(words), words), wrap(deep(words), words)
    vars(plain).update(_trunk_or_reason="barred by the test", trunk=None)
    task = make_task("ioi", n=6, corruption="value_swap")
    stages = "logits@END; L2H3.q+L1H1.k+L2H0.k@IO; L2H2.v+L1H0.v@all"
    a, b = (path_patching(model, task, stages=stages, batch=4, draws=10) for model in (fast, plain))
    np.testing.assert_allclose(a["metric"].values, b["metric"].values, atol=1e-5, rtol=1e-5)


def run(module, tokens, edits=(), heard=()):
    """Logits of plain transformers, with what modules take (or return) replaced, and what some modules returned."""
    kept, handles = {}, []

    def keep(part, args, out):
        kept[part] = args[0], out

    for part, kind, value in edits:
        if kind == "in":
            handles.append(part.register_forward_pre_hook(lambda m, args, value=value: (value, *args[1:])))
        else:
            handles.append(part.register_forward_hook(lambda m, args, out, value=value: value))
    handles += [part.register_forward_hook(keep) for part in heard]
    with torch.no_grad():
        logits = module(input_ids=tokens).logits
    for handle in handles:
        handle.remove()
    return logits, kept


@pytest.mark.parametrize("receiver", ["logits@END", "L1H0.q+L1H3.q@END", "L1H2.v@subject"])
@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_paths_equal_a_brute_force_in_plain_transformers(receiver, freeze_mlps, traced, saved):
    model, task = traced("gpt2"), make_task("subject_verb", n=5)
    prompts, ds = both(model, task, stages=receiver, freeze_mlps=freeze_mlps)
    module = AutoModelForCausalLM.from_pretrained(saved("gpt2")).eval()
    blocks, end = module.transformer.h, {"END": -1, "subject": 2}[receiver.partition("@")[2]]
    assert {marks["subject"] for marks in prompts.positions} == {2}  # all prompts are alike
    clean, corrupted = (torch.tensor(np.stack(side)) for side in (prompts.clean, prompts.corrupted))
    writing, mlps = [block.attn.c_proj for block in blocks], [block.mlp for block in blocks]
    _, kept = run(module, clean, heard=writing + mlps)
    _, other = run(module, corrupted, heard=writing)
    for layer in range(2):
        for head in range(4):
            sent = {part: kept[part][0].clone() for part in writing}
            columns = slice(head * SIZE, (head + 1) * SIZE)
            sent[writing[layer]][:, end, columns] = other[writing[layer]][0][:, end, columns]
            edits = [(part, "in", value) for part, value in sent.items()]
            edits += [(part, "out", kept[part][1]) for part in mlps] if freeze_mlps else []
            logits, arrived = run(module, clean, edits, heard=[blocks[1].attn.c_attn])
            if receiver != "logits@END":
                first = 0 if ".q" in receiver else 64  # queries, keys, values lie side by side
                _, now = run(module, clean, heard=[blocks[1].attn.c_attn])
                put = now[blocks[1].attn.c_attn][1].clone()
                for to in (0, 3) if ".q" in receiver else (2,):
                    some = slice(first + to * SIZE, first + (to + 1) * SIZE)
                    put[:, end, some] = arrived[blocks[1].attn.c_attn][1][:, end, some]
                logits, _ = run(module, clean, [(blocks[1].attn.c_attn, "out", put)])
            found = ds["metric"].sel(layer=layer, head=head).values[:, 0]
            np.testing.assert_allclose(found, metric_of(logits, prompts).numpy(), atol=1e-5)


@pytest.mark.parametrize("part", "qkv")
def test_with_frozen_mlps_a_path_is_transformer_lens_direct_path(part, words):
    """Its clean and corrupted runs are swapped here."""
    model, task = wrap(deep(words).double(), words), make_task("subject_verb", n=4)
    stages = ";".join(f"L{layer}H{head}.{part}@all" for layer in (1, 2) for head in range(4))
    prompts, ds = both(model, task, stages=stages, freeze_mlps=True)
    clean, corrupted = (torch.tensor(np.stack(side)) for side in (prompts.clean, prompts.corrupted))
    with torch.inference_mode():
        caches = [model.bridge.run_with_cache(side)[1] for side in (clean, corrupted)]
        for layer, head in [(0, 0), (0, 2), (1, 1), (1, 3)]:
            expected = patching.get_act_patch_direct_path(
                *(model.bridge, clean, caches[1], caches[0], lambda logits: metric_of(logits, prompts).mean()),
                *(layer, head, part, False),
            )
            for to in range(layer + 1, 3):
                for receiver in range(4):
                    cell = ds["metric"].sel(receiver=f"L{to}H{receiver}.{part}@all", layer=layer, head=head)
                    np.testing.assert_allclose(cell.mean().item(), expected[to, receiver].item(), atol=1e-6)


def test_a_stage_listens_at_the_strongest_heads_of_the_one_before(traced):
    model, task = traced("gpt2"), make_task("subject_verb", n=6)
    ds = path_patching(model, task, stages="logits@END; v@subject; q@END", top=0.25, draws=10)
    labels, previous = ds["receiver"].values.tolist(), ds["effect"].values
    assert labels[0] == "logits@END" and json.loads(ds.attrs["stages"]) == labels
    for stage, (part, position) in ((1, ("v", "subject")), (2, ("q", "END"))):
        strongest = np.argsort(-abs(previous[stage - 1]).ravel(), kind="stable")[:2]  # a quarter of eight
        names = [f"L{cell // 4}H{cell % 4}.{part}" for cell in sorted(strongest)]
        assert labels[stage] == f"{'+'.join(names)}@{position}"
    alone = path_patching(model, task, stages=labels[1], draws=10)
    np.testing.assert_allclose(alone["metric"].values, ds["metric"].sel(receiver=[labels[1]]).values, atol=1e-6)


def test_heads_without_a_path_have_no_effect(traced):
    ds = path_patching(traced("llama"), make_task("subject_verb", n=4), stages="L0H1.q@END; L1H2.k@all", draws=10)
    first, second = (ds.sel(receiver=receiver) for receiver in ds["receiver"].values)
    assert (first["metric"] == ds["metric_clean"]).all() and (first["effect"] == 0).all()
    assert (second["metric"].sel(layer=1) == ds["metric_clean"]).all() and (second["effect"].sel(layer=1) == 0).all()
    assert (second["effect"].sel(layer=0) != 0).any()


def test_effects_are_shares_of_the_drop(traced):
    ds = path_patching(traced("gpt2"), make_task("ioi", n=6), draws=200)
    clean, corrupted = ds["metric_clean"].values.mean(), ds["metric_corrupted"].values.mean()
    expected = (ds["metric"].values.mean(0) - clean) / (corrupted - clean)
    np.testing.assert_allclose(ds["effect"].values, expected, atol=1e-9)
    assert (ds["effect_low"] <= ds["effect"]).all() and (ds["effect"] <= ds["effect_high"]).all()


def test_the_one_head_that_writes_sends_everything_to_the_logits(fresh, words):
    _, model = planted(fresh, words, keep={(1, 2): 1.0})
    ds = path_patching(model(), make_task("subject_verb", n=8), stages="logits@END; logits@all", draws=10)
    expected = np.zeros((2, 4))
    expected[1, 2] = 1
    for receiver in range(2):
        np.testing.assert_allclose(ds["effect"].values[receiver], expected, atol=1e-4)


def test_only_a_head_that_writes_sends_another_anything(fresh, words):
    """One head of the first layer and one of the second write; only the first sends the second anything."""
    module, model = planted(fresh, words, keep={(0, 1): 1.0, (1, 2): 1.0})
    with torch.no_grad():
        for block in module.transformer.h:  # MLPs write nothing
            block.mlp.c_proj.weight.zero_()
    loaded, task = model(), make_task("subject_verb", n=8)
    ds = path_patching(loaded, task, stages="logits@END; L1H2.q+L1H2.k+L1H2.v@all; L1H0.v@all", draws=10)
    through, nowhere = ds["effect"].values[1], ds["effect"].values[2]
    assert abs(through[0, 1]) > 1e-3 and abs(np.delete(through.ravel(), 1)).max() < 1e-6
    np.testing.assert_allclose(nowhere, 0, atol=1e-6)  # a head that writes nothing passes nothing on


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_sending_what_is_there_already_changes_nothing(family, traced):
    trunk = traced(family).trunk
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 400, (3, 9)))
    clean, place = trunk.record(tokens), torch.tensor([2, 8, 5])
    for where, freeze_mlps in ((None, False), (None, True), (place, False), (place, True)):
        arrived = spread(trunk, clean, clean, where, [0, 1, 2], freeze_mlps)
        for layer, found in arrived.items():
            value = clean.inputs[layer]
            value = value if where is None else value[torch.arange(3), where][:, None]
            torch.testing.assert_close(found, value.repeat(4 * layer, 1, 1), atol=1e-6, rtol=1e-5)
        start = 0 if where is None else 2
        put = {"q": [0, 3], "k": [1], "v": [2]}
        act = receiving(trunk, 1, arrived[1], put, None if where is None else where - start, 9, start)
        last = trunk.run_on(1, clean.inputs[1][:, start:].repeat(4, 1, 1), clean, start, acts={1: act})
        torch.testing.assert_close(last, clean.inputs[-1][:, -1].repeat(4, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("logits", r"'logits' has no position; write it like logits@END"),
        ("logits@END;;q@END", r"'' has no position"),
        ("z@END", r"'z' is not a receiver; write logits, q, k or v"),
        ("L1H0.z@END", r"'L1H0.z' is not a receiver"),
        ("L1H0@END", r"'L1H0' is not a receiver"),
        ("logits@nowhere", r"read at END"),
        ("logits@subject", r"The logits are read at END, so a path to them at 'subject' carries nothing"),
        ("L1H0.q@nowhere", r"no position 'nowhere'; they have: all, subject, END, attractor\."),
        ("L2H0.q@END", r"no head L2H0: the model has 2 layers of 4"),
        ("L1H4.q@END", r"no head L1H4"),
        ("q@END", r"The first stage, 'q@END', needs named receivers or logits"),
    ],
)
def test_a_stage_that_cannot_be_read_is_said(stages, message, traced):
    with pytest.raises(AnalysisError, match=message):
        path_patching(traced("gpt2"), make_task("subject_verb", n=4), stages=stages, draws=10)


@pytest.mark.parametrize("top", [0.0, -0.1, 1.5])
def test_top_is_a_share(top, traced):
    with pytest.raises(AnalysisError, match="above 0 and at most 1"):
        path_patching(traced("gpt2"), make_task("subject_verb", n=4), stages="logits@END;q@END", top=top, draws=10)


def test_a_result_keeps_the_contract_on_disk(traced, tmp_path):
    ds = path_patching(traced("gpt2"), make_task("greater_than", n=4), stages="logits@END; v@END", draws=10)
    assert check(ds) is ds
    again = store.load(store.save(ds, tmp_path / "result.nc"))
    xr.testing.assert_equal(again, ds)
    assert again.attrs == ds.attrs and again["receiver"].values.tolist() == ds["receiver"].values.tolist()
    assert ds["metric"].dims == ("prompt", "receiver", "layer", "head") and ds["effect"].attrs["signed"] == 1
    assert (ds.attrs["analysis"], ds.attrs["primary"], ds.attrs["metric_name"]) == (
        *("path_patching", "effect"),
        "prob_diff",
    )
    assert ds.attrs["n"] == 4 and "not clipped" in ds.attrs["sign"] and ds["metric"].attrs["units"] == "1"
