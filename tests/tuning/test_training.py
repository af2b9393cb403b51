"""The loop against a plain PyTorch one, torchjd's aggregators, and itself stopped and resumed."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from workbench.aggregators import TORCHJD, WEIGHTINGS, make_aggregator
from workbench.methods import METHODS, MethodError
from workbench.models.load import read_module
from workbench.tasks._base import WorkbenchError
from workbench.training import TrainingError, counts, shares
from workbench.tuning import make_training

METHOD_OPTIONS = {"poly": {"skills": 2}, "lora": {"r": 2}, "separate_lora": {"r": 2}}


def with_method(small, method, **changes):
    family = "gpt2" if method == "bias_only" else "llama"
    return small(family, method=method, options=METHOD_OPTIONS.get(method, {}), **changes)


def weights_of(training):
    return {name: value.detach().clone() for name, value in training.module.named_parameters()}


def plain_loop(spec):
    """Losses and weights of the same fine-tune of all weights, written out with whole logits and no part of ours."""
    module, _, _ = read_module(spec.model)
    rows = make_training(spec)
    optimizer = torch.optim.AdamW(module.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    seen = []
    module.train()
    for step in range(spec.steps):
        losses = []
        for pool, count in zip(rows.pools, rows.counts, strict=True):
            each = []
            for number in pool.drawn(step * int(count), int(count), spec.seed):
                ids = torch.from_numpy(pool.ids[number])[None]
                each.append(cross_entropy(module(ids[:, :-1]).logits[:, -1], ids[:, -1]))
            losses.append(torch.stack(each).mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), spec.clip)
        optimizer.param_groups[0]["lr"] = rows.rate(step)
        optimizer.step()
        seen.append([loss.item() for loss in losses])
    return np.array(seen), dict(module.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_it_is_a_plain_loop(small, family):
    spec = small(family, method="full")
    training = make_training(spec)
    seen = [training.step().losses for _ in range(spec.steps)]
    losses, weights = plain_loop(spec)
    np.testing.assert_allclose(seen, losses, rtol=1e-3)
    assert losses[-1].mean() < losses[0].mean()
    start, _, _ = read_module(spec.model)
    moved = off = 0.0
    for name, value in dict(start.named_parameters()).items():
        moved += (weights[name].detach() - value.detach()).square().sum().item()
        off += (weights[name].detach() - training.named[name].detach()).square().sum().item()
    assert off < 1e-4 * moved  # AdamW divides by the gradient's size, so where that is rounding, so is the step


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_what_it_says_and_the_loss_falls(small, method):
    spec = with_method(small, method, steps=12, learning_rate=3e-2)
    training = make_training(spec)
    before = weights_of(training)
    losses = [sum(training.step().losses) for _ in range(spec.steps)]
    changed = {name for name, value in training.module.named_parameters() if not torch.equal(value, before[name])}
    assert changed and changed <= set(training.named)
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_seeded_runs_agree_and_a_resumed_one_is_the_same_bit_for_bit(small, method):
    spec = with_method(small, method)
    whole = make_training(spec)
    expected = [whole.step().losses for _ in range(6)]
    first = make_training(spec)
    assert [first.step().losses for _ in range(3)] == expected[:3]
    first.evaluate()
    state, second = first.state(), make_training(spec)
    second.restore(state)
    assert [second.step().losses for _ in range(3)] == expected[3:]
    for name, value in whole.named.items():
        assert torch.equal(value, second.named[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_rate_of_zero_changes_nothing(small, method):
    training = make_training(with_method(small, method, learning_rate=0.0, weight_decay=0.1))
    before, held = weights_of(training), training.evaluate()
    for _ in range(3):
        training.step()
    assert all(torch.equal(value, before[name]) for name, value in training.module.named_parameters())
    assert training.evaluate() == held


@pytest.mark.parametrize("name", TORCHJD)
def test_aggregators_are_torchjds_own(small, name):
    training = make_training(small(method="lora", aggregator=name))
    for _ in range(2):
        training.step()  # of LoRA, at first one half has no gradient at all
    found, members = torch.zeros(2), range(2)
    jacobian = torch.stack([training._gradient(task, found) for task in members])
    torch.manual_seed(5)
    expected = make_aggregator(name)(jacobian)
    torch.manual_seed(5)
    training._by_jacobian()
    got = torch.cat([value.grad.flatten() for value in training.named.values()])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)


def test_a_gradient_of_the_jacobian_is_that_of_the_tasks_loss(small):
    training = make_training(small(method="full"))
    training.step()
    found = torch.zeros(2)
    jacobian = torch.stack([training._gradient(task, found) for task in range(2)])
    losses = training.losses(training.batch(training.done, [0, 1]))
    for row, loss in zip(jacobian, losses, strict=True):
        parts = torch.autograd.grad(loss, list(training.named.values()), retain_graph=True)
        torch.testing.assert_close(row, torch.cat([p.flatten() for p in parts]), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found, losses.detach(), rtol=1e-5, atol=1e-6)


def test_weightings_follow_their_equations():
    losses, even = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([0.5, 0.5])
    assert WEIGHTINGS["mean"](2)(losses, even) == 3
    kendall = WEIGHTINGS["uncertainty"](2)
    with torch.no_grad():
        kendall.log_variance.copy_(torch.tensor([0.0, 1.0]))
    expected = 0.5 * 2 + 0.5 * (4 / np.e + 1)
    assert kendall(losses, even).item() == pytest.approx(expected)
    average = WEIGHTINGS["dynamic_average"](2)
    for value in (1.0, 0.5):
        for _ in range(20):
            average(torch.tensor([1.0, value]), even)
    ratio = torch.tensor([1.0, 0.5])
    weights = 2 * torch.softmax(ratio / 2, 0)
    assert average(losses, even).item() == pytest.approx((even * weights * losses).sum().item())


def test_rows_are_shared_by_weight(small, saved):
    assert counts(np.array([0.5, 0.25, 0.25]), 11).tolist() == [5, 3, 3]
    assert counts(np.array([0.98, 0.01, 0.01]), 3).tolist() == [1, 1, 1]
    rows = [{"prompt": "Mary went to the", "answer": " store"}] * 72  # 64 to train on, 8 held out
    spec = small(tasks=["ioi", {"name": "mine", "rows": rows}], examples=16, temperature=2.0)
    assert shares(make_training(spec).pools, spec) == pytest.approx([1 / 3, 2 / 3])


def test_accuracy_is_counted_by_hand(small):
    training = make_training(small(method="full"))
    for task, found in enumerate(training.evaluate()):
        pool, right, loss = training.pools[task], 0, 0.0
        for row, allowed in zip(pool.held, pool.allowed, strict=True):
            logits = training.module(torch.from_numpy(row[None, :-1])).logits[0, -1].detach()
            right += int(logits.argmax()) in allowed
            loss += float(cross_entropy(logits, torch.tensor(row[-1])))
        assert found["right"] == right and found["loss"] == pytest.approx(loss / len(pool.held), rel=1e-4)


def test_a_row_of_several_answer_tokens_is_right_when_all_are(small):
    rows = [{"prompt": "Mary went to the", "answer": " store with John"}] * 30
    training = make_training(small(tasks=[{"name": "mine", "rows": rows}], method="full", steps=40, learning_rate=1e-2))
    assert training.evaluate()[0]["right"] == 0
    for _ in range(40):
        training.step()
    assert training.evaluate()[0]["right"] == 8


def test_conflicting_tasks_are_resolved_by_routing_and_not_by_sharing(small):
    """The same prompts with opposite answers: a shared adapter cannot have both, task-routed ones can."""
    prompts = [f"{name} went to the" for name in ("Mary", "John", "Tom", "Anna")] * 8
    tasks = [
        {"name": answer, "rows": [{"prompt": prompt, "answer": f" {answer}"} for prompt in prompts]}
        for answer in ("store", "garden")
    ]
    accuracy = {}
    for method, options in (("lora", {}), ("separate_lora", {}), ("poly", {"skills": 2})):
        training = make_training(small(tasks=tasks, method=method, options=options, steps=60, learning_rate=2e-2))
        for _ in range(60):
            training.step()
        accuracy[method] = [found["right"] / found["n"] for found in training.evaluate()]
    assert np.mean(accuracy["lora"]) == 0.5
    assert accuracy["separate_lora"] == accuracy["poly"] == [1.0, 1.0]


def test_a_loss_that_is_no_number_stops_with_the_setting_to_change(small):
    training = make_training(small(method="full", learning_rate=1e30, clip=0.0, warm_up=0, steps=20))
    with pytest.raises(TrainingError, match="lower learning_rate from 1e\\+30"):
        for _ in range(20):
            training.step()


def test_methods_that_do_not_fit_say_so(small):
    with pytest.raises(MethodError, match="no biases to train"):
        make_training(small("llama", method="bias_only"))
    with pytest.raises(WorkbenchError, match=r"torch\.nn\.Linear"):
        make_training(small("gpt2", method="poly"))
    with pytest.raises(TrainingError, match="tokens, but the model takes"):
        rows = [{"prompt": "Mary went to the " * 40 + "store", "answer": " with"}] * 20
        make_training(small(tasks=[{"name": "mine", "rows": rows}]))
