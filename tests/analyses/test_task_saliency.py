"""Task saliency: autograd on the family's own hidden states, closed forms of shares and entropies, and its null."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.analyses import AnalysisError, task_list, task_saliency
from workbench.analyses.task_saliency import Saliency, _dataset, entropy
from workbench.models.load import load
from workbench.progress import Cancelled, reporting
from workbench.tasks import Task, make_task

TASKS = ["subject_verb", "ioi", "greater_than"]


def slopes(folder, model, task):
    """dL / dZ of each prompt, [layer, pos, channel], one prompt at a time, on the hidden states transformers gives."""
    module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    prompts, found = task.encode(model.tokenizer, bos=model.bos), []
    for tokens, answers in zip(prompts.clean, prompts.answers, strict=True):
        out = module(input_ids=torch.from_numpy(tokens)[None], output_hidden_states=True)
        loss = -F.softmax(out.logits[0, -1], -1)[answers].sum().log()
        streams = out.hidden_states[:-1]  # the last one is what leaves the final norm
        found.append(torch.stack(torch.autograd.grad(loss, streams))[:, 0].numpy())
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_saliency_and_shares_are_those_of_autograd_on_the_hidden_states(family, scale, saved, traced):
    model = traced(family)
    tasks = [make_task(name, n=8) for name in TASKS]
    given = {"tasks": ",".join(TASKS[1:]), "positions": 4, "scale": scale, "draws": 5, "batch": 3}
    ds = task_saliency(model, tasks[0], **given)
    by_pos, by_channel = [], []
    for task in tasks:
        each = [np.abs(table[:, -4:]) for table in slopes(saved(family), model, task)]
        by_pos.append([table.mean(-1) for table in each])
        by_channel.append([table.mean(-2) for table in each])
    np.testing.assert_allclose(ds["saliency"], np.mean(by_pos, 1), rtol=2e-4, atol=1e-7)
    for profile, name in ((np.array(by_pos), "entropy"), (np.array(by_channel), "channel_entropy")):
        total = profile.sum(-1, keepdims=True) if scale == "unit" else 1
        mean = (profile / total).mean(1)
        share = mean / mean.sum(0)
        expected = -(share * np.log(share)).sum(0) / np.log(3)
        if name == "entropy":
            np.testing.assert_allclose(ds["share"], share, rtol=5e-4)
            np.testing.assert_allclose(ds["entropy"], expected, rtol=1e-4)
        else:
            np.testing.assert_allclose(ds["channel_entropy"], expected.mean(-1), rtol=1e-4)
    assert ds["pos"].values.tolist() == [-3, -2, -1, 0] and ds["loss"].shape == (3, 8)
    np.testing.assert_allclose(ds["share"].sum("task"), 1)


def test_the_papers_mean_over_channels_is_zero_where_a_layernorm_reads(saved, traced):
    task = make_task("ioi", n=8)
    for family, zero in (("gpt2", True), ("llama", False)):
        tables = slopes(saved(family), traced(family), task)
        signed = np.mean([np.abs(table.mean(-1)).mean() for table in tables])
        absolute = np.mean([np.abs(table).mean() for table in tables])
        assert (signed < 1e-5 * absolute) == zero


def test_two_names_of_one_task_share_every_place_evenly(traced):
    model, task = traced("gpt2"), make_task("ioi", n=12)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    rows = [
        {"clean": text, "corrupted": f"{text[::-1]}", "answer": " Mary", "wrong": " John"} for text in prompts.texts
    ]
    for i, row in enumerate(rows):
        row["corrupted"] = model.tokenizer.decode(prompts.corrupted[i][int(model.bos) :])
    one, twin = (Task.from_records(rows, name) for name in ("one", "twin"))
    ds = task_saliency(model, one, tasks=task_list(twin), draws=50)
    np.testing.assert_allclose(ds["share"], 0.5, atol=1e-6)
    np.testing.assert_allclose(ds["entropy"], 1, atol=1e-9)
    assert (ds["entropy_p"] == 1).all() and (ds["entropy"] >= ds["entropy_null_low"]).all()


def dataset(by_pos, draws=99, scale="raw", seed=0):
    by_pos = np.asarray(by_pos, float)
    found = Saliency(by_pos, by_pos, np.zeros(by_pos.shape[:2]))
    return _dataset(found, [f"task {t}" for t in range(len(by_pos))], scale, draws, seed)


def test_tasks_that_lean_on_places_of_their_own_are_told_apart():
    rng = np.random.default_rng(0)
    by_pos = np.zeros((2, 20, 1, 3))
    by_pos[0, :, 0, 0], by_pos[1, :, 0, 1] = 1 + rng.random(20), 1 + rng.random(20)
    by_pos[:, :, 0, 2] = 1 + rng.random((2, 20))
    ds = dataset(by_pos)
    np.testing.assert_allclose(ds["entropy"].values[0, :2], 0, atol=1e-12)
    assert ds["entropy"].values[0, 2] > 0.99
    assert ds["entropy_p"].values[0].tolist()[:2] == [0.01, 0.01] and ds["entropy_p"].values[0, 2] > 0.05
    np.testing.assert_allclose(ds["share"].values[:, 0, :2], np.eye(2), atol=1e-12)
    assert (ds["share_null_high"].values[0, 0, :2] < 0.9).all()
    assert (ds["entropy_low"].values <= ds["entropy"].values).all()


def test_the_null_takes_tasks_that_do_not_differ_for_what_they_are():
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        by_pos = rng.exponential(size=(3, 12, 1, 2)) * rng.exponential(size=(3, 12, 1, 1)) ** 2
        ds = dataset(by_pos, 39, "unit" if seed % 2 else "raw", seed)
        found.append(float(ds["entropy_p"].values[0, 0]) <= 0.05)
    assert np.mean(found) <= 0.12


def test_unit_scale_forgets_how_large_a_loss_is_and_raw_does_not():
    rng = np.random.default_rng(0)
    by_pos = rng.random((2, 10, 2, 3))
    loud = by_pos * np.array([100.0, 1.0])[:, None, None, None]
    np.testing.assert_allclose(dataset(loud, 5, "unit")["share"], dataset(by_pos, 5, "unit")["share"])
    assert (dataset(loud, 5, "raw")["share"].values[0] > 0.9).all()


def test_entropies_have_their_closed_forms():
    shares = np.array([[1.0, 0.25, 0.5], [0.0, 0.75, 0.5]])[:, None]
    mixed = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    np.testing.assert_allclose(entropy(shares)[0], [0, mixed, 1])
    silent = dataset(np.zeros((2, 3, 1, 2)), 5)
    assert (silent["share"] == 0.5).all() and (silent["entropy"] == 1).all()


def test_a_short_prompt_shortens_what_is_compared(traced):
    model = traced("gpt2")
    shortest = min(make_task(name, n=8).encode(model.tokenizer, bos=model.bos).lengths.min() for name in TASKS[:2])
    ds = task_saliency(model, make_task(TASKS[0], n=8), tasks=TASKS[1], positions=99, draws=5)
    assert ds.sizes["pos"] == shortest and ds["pos"].values[-1] == 0


def test_stopping_gives_the_prompts_that_every_task_had(traced):
    model, task = traced("gpt2"), make_task("ioi", n=8)
    with reporting(lambda what, done, total: done < 3):
        part = task_saliency(model, task, tasks="subject_verb", batch=4, draws=5)
    assert part.sizes["prompt"] == 4 and part.attrs["n"] == 4
    full = task_saliency(model, make_task("ioi", n=8), tasks="subject_verb", batch=4, draws=5)
    np.testing.assert_allclose(part["loss"], full["loss"][:, :4], rtol=1e-5)
    with reporting(lambda what, done, total: done < 1), pytest.raises(Cancelled, match="every task"):
        task_saliency(model, task, tasks="subject_verb", draws=5)


def test_the_model_is_left_alone_and_what_is_wrong_is_said(traced, saved):
    model, task = traced("llama"), make_task("ioi", n=8)
    flags = [parameter.requires_grad for parameter in model.plain.parameters()]
    task_saliency(model, task, tasks="subject_verb", draws=5)
    assert [parameter.requires_grad for parameter in model.plain.parameters()] == flags
    assert not any(module._forward_pre_hooks for module in model.plain.modules())
    with pytest.raises(AnalysisError, match="positions is 0"):
        task_saliency(model, task, tasks="subject_verb", positions=0)
    with pytest.raises(AnalysisError, match="fold=False"):
        task_saliency(load(saved("gpt2"), device="cpu", fold=True), task, tasks="subject_verb")


def test_a_result_is_made_again(saved):
    ds = wb.run("task_saliency", str(saved("gpt2")), make_task("ioi", n=8), tasks="subject_verb", draws=5)
    assert wb.rerun(ds)[1] == 0
