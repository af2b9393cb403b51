"""Experts cut to rank r, against SVDs put into plain transformers, planted ranks, and bases given by name."""

import numpy as np
import pytest
import torch
from plain_experts import metric

from workbench.analyses import AnalysisError, expert_truncation
from workbench.analyses._expert_weights import answer_losses
from workbench.analyses.expert_truncation import _change, _sizes
from workbench.models.load import load, wrap
from workbench.models.reference import ModelError
from workbench.tasks import Task, make_task

TASK = make_task("ioi", n=8)
NAMES = ("gate_up_proj", "down_proj")
SCORES = ("loss", "accuracy", "metric")


def answered(module, prompts):
    """Mean loss of the answer, accuracy and metric, a prompt at a time."""
    found = []
    for ids, right, wrong in zip(prompts.clean, prompts.answers, prompts.wrongs, strict=True):
        with torch.no_grad():
            last = module(torch.from_numpy(ids)[None]).logits[0, -1].double()
        loss = -torch.log(last.softmax(-1)[right].sum())
        found.append([loss, last[right].max() > last[wrong].max(), metric(last[None, None], [right], [wrong])[0]])
    return np.array(found, float).mean(0)


def cut(experts, rank, base=None):
    """Put into experts the base, or their mean, and numpy's truncated SVD of the difference."""
    with torch.no_grad():
        for index, name in enumerate(NAMES):
            weight = getattr(experts, name)
            middle = weight.mean(0, keepdim=True) if base is None else base[index]
            left, values, right = np.linalg.svd((weight - middle).double().numpy(), full_matrices=False)
            kept = torch.from_numpy((left[..., :rank] * values[:, None, :rank]) @ right[:, :rank])
            weight.copy_(middle + kept.float())


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen3_moe"])
def test_every_rank_scores_as_a_truncated_svd_in_plain_transformers(family, traced, fresh):
    model = traced(family)
    ds, prompts = expert_truncation(model, TASK, batch=3), TASK.encode(model.tokenizer, bos=model.bos)
    assert ds["size"].values.tolist() == [0, 1, 2, 4, 8, 16, 32]
    for rank in (0, 1, 8, 32):
        module = fresh(family)
        for block in module.model.layers:
            cut(block.mlp.experts, rank)
        for name, expected in zip(SCORES, answered(module, prompts), strict=True):
            assert float(ds[name].sel(size=rank)) == pytest.approx(expected, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("base", ["mean", "other"])
def test_full_rank_is_the_model_as_it_is(base, traced, tmp_path, fresh, words):
    model = traced("mixtral")
    if base == "other":
        fresh("mixtral", initializer_range=0.2).save_pretrained(tmp_path)
        words.save_pretrained(tmp_path)
        base = str(tmp_path)
    ds = expert_truncation(model, TASK, base=base)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    for name, expected in zip(SCORES, answered(fresh("mixtral"), prompts), strict=True):
        assert float(ds[name][-1]) == pytest.approx(expected, abs=1e-4)
        assert ds.attrs[f"{name}_whole"] == pytest.approx(expected, abs=1e-4)
        assert (ds[f"{name}_random"][-1] == ds[name][-1]).all() and (ds[f"{name}_random"][0] == ds[name][0]).all()
    assert float(ds["retained"][-1]) == pytest.approx(1) and float(ds["retained"][0]) == 0
    assert abs(ds["loss_random"][1:-1] - ds["loss"][1:-1]).min() > 1e-5  # in between, another subspace is another model


def test_rank_zero_is_the_base_everywhere(traced, tmp_path, fresh, words):
    other = fresh("mixtral", initializer_range=0.2)
    other.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model, module = traced("mixtral"), fresh("mixtral")
    ds = expert_truncation(model, TASK, base=str(tmp_path))
    for block, theirs in zip(module.model.layers, other.model.layers, strict=True):
        block.mlp.experts.load_state_dict(theirs.mlp.experts.state_dict())
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    np.testing.assert_allclose([ds[name][0] for name in SCORES], answered(module, prompts), rtol=1e-4, atol=1e-4)


def test_a_planted_rank_is_enough_and_one_less_is_not(fresh, words):
    """Experts are a common matrix plus differences of rank 3 with equal singular values."""
    module, generator = fresh("mixtral"), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in module.model.layers:
            for name in NAMES:
                weight = getattr(block.mlp.experts, name)
                left = torch.linalg.qr(torch.randn(4, weight.shape[1], 4, generator=generator)).Q
                right = torch.linalg.qr(torch.randn(4, weight.shape[2], 4, generator=generator)).Q
                sign = torch.tensor([[1.0, 1, 1, 0]]).T * torch.tensor([1.0, -1, 1, -1])  # sums to 0 over experts
                same = (left[:1] * 6 * sign.T[:, None]) @ right[:1].mT
                weight.copy_(weight[:1] + same)
    ds = expert_truncation(wrap(module, words), TASK)
    whole = ds["loss"].values[-1]
    assert ds["loss"].sel(size=4).item() == pytest.approx(whole, abs=1e-4)
    assert abs(ds["loss"].sel(size=2).item() - whole) > 1e-2
    np.testing.assert_allclose(ds["effective_rank"], 3, rtol=1e-3)
    np.testing.assert_allclose(ds["energy"].sel(size=[1, 2, 4]), np.ones((2, 4, 2, 1)) * [1 / 3, 2 / 3, 1], rtol=1e-4)
    np.testing.assert_allclose(ds["retained"].sel(size=[0, 1, 2, 4]), [0, 1 / 3, 2 / 3, 1], atol=1e-4)
    assert (ds["effective_rank_null"] > 10).all()


def test_energy_is_that_of_the_singular_values_and_random_subspaces_retain_their_share(traced):
    model = traced("olmoe")
    ds = expert_truncation(model, TASK)
    weight = model.plain.model.layers[1].mlp.experts.down_proj.detach().double()
    change = weight - weight.mean(0)
    for expert in range(4):
        squares = np.linalg.svd(change[expert].numpy(), compute_uv=False) ** 2
        at = ds.sel(layer=1, expert=expert, module="down")
        q = squares / squares.sum()
        np.testing.assert_allclose(at["energy"], [q[:r].sum() for r in ds["size"].values], rtol=1e-5)
        assert float(at["effective_rank"]) == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=1e-5)
    part, rng = _change(weight, weight.mean(0, keepdim=True)), np.random.default_rng(0)
    drawn = [float((part.random(8, rng) - part.base).square().sum() / part.change.square().sum()) for _ in range(60)]
    np.testing.assert_allclose(np.mean(drawn), 8 / 32, rtol=0.03)
    np.testing.assert_allclose(ds["retained_null"], ds["size"] / 32, rtol=1e-6)
    np.testing.assert_allclose(ds["parameters"].sel(size=[0, 8, 32]), [0, (8 * 160 + 8 * 96) / (4096 + 2048), 1])
    one = torch.linalg.matrix_rank(part.random(8, rng) - part.base)
    assert one.tolist() == [8] * 4


def test_the_null_is_the_range_of_its_draws_and_the_interval_holds_the_mean(traced):
    ds = expert_truncation(traced("mixtral"), TASK, draws=6)
    for name in SCORES:
        drawn = ds[f"{name}_random"]
        np.testing.assert_allclose(ds[f"{name}_null"], drawn.mean("seed"))
        np.testing.assert_allclose(ds[f"{name}_null_low"], drawn.min("seed"))
        np.testing.assert_allclose(ds[f"{name}_null_high"], drawn.max("seed"))
        assert ((ds[f"{name}_low"] <= ds[name]) & (ds[name] <= ds[f"{name}_high"])).all()


def test_a_model_upcycled_from_a_dense_one_is_its_base_at_every_rank(saved, fresh, words):
    dense, module = saved("llama"), fresh("mixtral")
    source = fresh("llama")
    with torch.no_grad():
        for block, mlp in zip(module.model.layers, (layer.mlp for layer in source.model.layers), strict=True):
            block.mlp.experts.gate_up_proj.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            block.mlp.experts.down_proj.copy_(mlp.down_proj.weight)
        module.model.layers[0].mlp.experts.down_proj[2] += 0.5 * torch.eye(32, 64)
    ds = expert_truncation(wrap(module, words), TASK, base=str(dense))
    still = np.ones((2, 4, 2), dtype=bool)
    still[0, 2, 1] = False
    assert (ds["effective_rank"].values[still] == 1).all()  # of no difference at all
    assert float(ds["effective_rank"][0, 2, 1]) == pytest.approx(32, rel=1e-4)
    expected = np.minimum(ds["size"], 32) / 32  # one difference only, with equal singular values
    np.testing.assert_allclose(ds["retained"], expected, rtol=1e-4)


def test_a_working_model_keeps_its_task_in_few_directions_that_are_not_random(zoo_mixture):
    ds = expert_truncation(zoo_mixture, make_task("ioi", n=32))
    at = ds.sel(size=16)
    assert float(ds["loss_high"][-1]) < float(ds["loss_low"][0])  # the experts' differences matter
    assert float(at["loss_high"]) < float(at["loss_null_low"])
    assert float(at["retained"]) > float(at["retained_null"]) + 0.2


@pytest.fixture(scope="module")
def zoo_mixture():
    return load("zoo/tasks-moe", device="cpu")


def test_the_loss_is_that_of_any_of_the_answers():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    found = answer_losses(logits, [np.array([1, 2]), np.array([2])])
    np.testing.assert_allclose(found, -np.log([0.5, 0.7]), rtol=1e-6)


def test_sizes_are_nothing_powers_of_two_and_everything():
    assert _sizes(1) == [0, 1] and _sizes(8) == [0, 1, 2, 4, 8] and _sizes(12) == [0, 1, 2, 4, 8, 12]


def test_what_cannot_be_measured_is_refused(traced, saved):
    with pytest.raises(AnalysisError, match=r"draws is 4; .* needs 5 or more"):
        expert_truncation(traced("mixtral"), TASK, draws=4)
    with pytest.raises(ModelError, match="no experts"):
        expert_truncation(traced("gpt2"), TASK)
    with pytest.raises(AnalysisError, match=r"no experts or MLP in layer 0 of the shapes \(4, 128, 32\)"):
        expert_truncation(traced("mixtral"), TASK, base=str(saved("gpt2")))
    with pytest.raises(AnalysisError, match="no experts or MLP in layer 0"):
        expert_truncation(traced("mixtral"), TASK, base=str(saved("qwen3_moe")))
    with pytest.raises(ModelError, match="no directory '/no/such'"):
        expert_truncation(traced("mixtral"), TASK, base="/no/such")


def test_probability_differences_and_several_answers_are_read(traced):
    rows = [
        {"clean": f"the {a} {b}", "corrupted": f"the {b} {a}", "answer": [" the", " gave"], "wrong": " to"}
        for a, b in zip(["book", "key", "ring"] * 3, ["store", "garden", "park"] * 3, strict=True)
    ]
    task = Task.from_records(rows, metric="prob_diff")
    model = traced("mixtral")
    ds, prompts = expert_truncation(model, task), task.encode(model.tokenizer, bos=model.bos)
    assert abs(float(ds["metric"][-1])) <= 1 and len(prompts.answers[0]) == 2
    losses = answered(model.plain, prompts)[0]
    assert float(ds["loss"][-1]) == pytest.approx(losses, abs=1e-4)
