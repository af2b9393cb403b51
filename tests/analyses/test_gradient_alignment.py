"""Gradient alignment: full Jacobians, closed forms, planted conflict, and what noise alone passes for."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from peft import LoraConfig, PolyConfig, get_peft_model
from torch.nn import functional as F
from torchjd.autojac import jac

import workbench as wb
from workbench.analyses import AnalysisError, _shelf, _slopes, gradient_alignment, task_list, task_saliency
from workbench.analyses._gradients import cosines, measures
from workbench.analyses._several import answer_losses, rows_of
from workbench.analyses._shelf import Grams, Shelf
from workbench.analyses._slopes import Slopes, dense
from workbench.analyses.gradient_alignment import divided
from workbench.models.division import Division, Piece, Unit
from workbench.models.load import load, wrap
from workbench.progress import Cancelled, reporting
from workbench.tasks import Task, TaskError, make_task

TASKS = ("subject_verb", "ioi", "greater_than")
FAMILIES = ["gpt2", "gpt_neox", "llama", "mixtral", "gemma2"]


def module_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def loss_of(module, prompts, rows):
    """Mean over prompts of -log p(answer | prompt), one prompt at a time."""
    found = []
    for i in rows:
        logits = module(input_ids=torch.from_numpy(prompts.clean[i])[None]).logits[0, -1]
        found.append(-F.softmax(logits, -1)[prompts.answers[i]].sum().log())
    return torch.stack(found).mean()


def jacobian(model, module, tasks, batches):
    """Gradients of every batch of every task, {parameter: [task, batch, ...]}, by torchjd."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    losses = []
    for task in tasks:
        prompts = task.encode(model.tokenizer, bos=model.bos)
        losses += [loss_of(module, prompts, rows) for rows in np.arange(len(prompts)).reshape(batches, -1)]
    found = jac(losses, parameters, parallel_chunk_size=1)
    shape = (len(tasks), batches)
    return {n: table.double().reshape(*shape, *table.shape[1:]) for n, table in zip(names, found, strict=True)}


def flat(table, division, unit):
    """A unit's part of a Jacobian, [task, batch, number]."""
    parts = []
    for index in unit.pieces:
        piece = division.pieces[index]
        rows = table[division.names[piece.parameter]]
        wide = rows.reshape(*rows.shape[:2], rows.shape[2], -1)
        parts.append(piece.of(wide, *map(range, wide.shape[2:])))
    return torch.cat(parts, -1).numpy()


def brute(rows):
    """Every measure of gradients [task, batch, number], by loops."""
    tasks, batches, width = rows.shape
    mean, pairs = rows.mean(1), [(b, c) for b in range(batches) for c in range(batches) if b != c]
    found = {name: np.zeros((tasks, tasks)) for name in ("cosine", "support_cosine", "conflict", "magnitude", "floor")}
    found["common"], found["ceiling"] = np.zeros((tasks, tasks)), np.zeros(tasks)
    for i in range(tasks):
        own = np.mean([rows[i, b] @ rows[i, c] for b, c in pairs])
        found["ceiling"][i] = own / (mean[i] @ mean[i])
        for j in range(tasks):
            one, other = mean[i], mean[j]
            both = (one != 0) & (other != 0)
            norms = np.linalg.norm(one), np.linalg.norm(other)
            found["cosine"][i, j] = one @ other / (norms[0] * norms[1])
            found["support_cosine"][i, j] = (one @ other) / (np.linalg.norm(one[both]) * np.linalg.norm(other[both]))
            found["conflict"][i, j] = np.mean([rows[i, b] @ rows[j, c] < 0 for b, c in pairs])
            found["magnitude"][i, j] = 2 * norms[0] * norms[1] / (norms[0] ** 2 + norms[1] ** 2)
            found["floor"][i, j] = np.sqrt(both.sum() / ((one != 0).sum() * (other != 0).sum()))
            found["common"][i, j] = both.sum() / width
    return found | {"norm": np.linalg.norm(mean, axis=-1)}


def agree(ds, division, table, units=None):
    for unit in units or division.units:
        expected, row = brute(flat(table, division, unit)), ds.sel(module=unit.name)
        for name, values in expected.items():
            rough = 5e-3 if name in ("common", "floor") else 2e-4  # rounding lets a gradient of 0 be one or not
            np.testing.assert_allclose(row[name].values, values, rtol=rough, atol=2e-5, err_msg=f"{unit.name} {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_measure_is_that_of_the_full_jacobian_on_every_module(family, saved, traced):
    model, module = traced(family), module_of(saved(family))
    tasks = [make_task(name, n=8) for name in TASKS]
    ds = gradient_alignment(model, tasks[0], tasks=",".join(TASKS[1:]), batches=4)
    table, division = jacobian(model, module, tasks, 4), divided(model)
    kinds = {unit.kind for unit in division.units}
    assert kinds == {"whole", "kind", "layer", "matrix", "head"} | ({"expert"} if family == "mixtral" else set())
    unused = {str(n) for n in ds["module"].values[(ds["norm"] == 0).any("task").values]}
    agree(ds, division, table, [unit for unit in division.units if unit.name not in unused])
    prompts = [task.encode(model.tokenizer, bos=model.bos) for task in tasks]
    expected = [[loss_of(module, p, r).item() for r in np.arange(8).reshape(4, -1)] for p in prompts]
    np.testing.assert_allclose(ds["loss"], expected, rtol=1e-4)


def test_the_coordinates_say_what_each_module_is(traced):
    ds = gradient_alignment(traced("mixtral"), make_task("subject_verb", n=8), tasks="ioi", batches=2)
    head, expert, matrix = (ds.sel(module=name) for name in ("L1H3", "L0E2", "L1.W_V"))
    assert [str(part["kind"].item()) for part in (head, expert, matrix)] == ["head", "expert", "matrix"]
    assert (int(head["at_layer"]), int(head["at_head"]), int(head["at_expert"])) == (1, 3, -1)
    assert (int(expert["at_layer"]), int(expert["at_head"]), int(expert["at_expert"])) == (0, -1, 2)
    assert matrix["matrix"].item() == "W_V" and int(matrix["parameters"]) == 512
    assert json.loads(ds.attrs["task"]) == ds["task"].values.tolist() == ["subject_verb (number)", "ioi (s2_to_io)"]
    assert ds.attrs["n"] == 8 and "nats" in ds.attrs["metric_name"]


def test_prompts_of_several_lengths_and_small_passes_change_nothing(traced):
    words = ["Mary", "John", "Paul", "James", "Anna"]
    rows = [
        {"clean": " ".join(words[:k]), "corrupted": " ".join(words[:k][::-1]), "answer": " Mary", "wrong": " John"}
        for k in (2, 3, 4, 5, 2, 3, 4, 5)
    ]
    model = traced("llama")
    tasks = Task.from_records(rows, "long and short"), make_task("ioi", n=8)
    few = gradient_alignment(model, tasks[0], tasks=task_list(tasks[1]), batches=2, batch=1)
    many = gradient_alignment(model, tasks[0], tasks=task_list(tasks[1]), batches=2)
    for name in ("cosine", "norm", "loss", "ceiling"):
        np.testing.assert_allclose(few[name], many[name], atol=2e-5, rtol=1e-4)


def records(model, answers, n=16, seed=0, name="planted"):
    """Prompts of IOI, each with the answer that a function of the prompt's tokens gives."""
    prompts = make_task("ioi", n=n, seed=seed).encode(model.tokenizer, bos=model.bos)
    rows = []
    for i in range(len(prompts)):
        answer = model.tokenizer.decode([answers(prompts, i)])
        other = "Paul" if answer != "Paul" else "Mary"
        corrupted = model.tokenizer.decode(prompts.corrupted[i][int(model.bos) :])
        row = {"clean": prompts.texts[i], "corrupted": corrupted, "answer": f" {answer}", "wrong": f" {other}"}
        rows.append(row)
    return Task.from_records(rows, name)


def test_opposite_answers_to_the_same_prompts_pull_against_each_other(fresh, words):
    module = fresh("gpt2", initializer_range=0.05)
    model = wrap(module, words)
    one = records(model, lambda prompts, i: prompts.answers[i][0], name="indirect object")
    other = records(model, lambda prompts, i: prompts.wrongs[i][0], name="subject")
    both = [rows_of(task.encode(words, bos=model.bos), np.arange(16)) for task in (one, other)]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):  # until both answers have about one half
        optimizer.zero_grad()
        torch.cat([answer_losses(module, rows) for rows in both]).mean().backward()
        optimizer.step()
    ds = gradient_alignment(wrap(module, words), one, tasks=task_list(other), batches=4)
    pair = ds.isel(task=0, receiver=1)
    assert float(pair["cosine"].sel(module="all")) < -0.9 and int(pair["clear"].sel(module="all")) == 1
    heads = pair["cosine"].values[pair["kind"].values == "head"]
    assert heads.max() < 0 and (pair["cosine_high"].sel(module="all") < 0)
    assert 0.7 < float(pair["magnitude"].sel(module="all")) <= 1


def test_a_task_agrees_with_itself_under_another_name(traced):
    model = traced("mixtral")
    one, twin = (records(model, lambda p, i: p.answers[i][0], name=name) for name in ("one", "twin"))
    ds = gradient_alignment(model, one, tasks=task_list(twin), batches=4)
    used = ds["norm"].values[:, 0] > 0
    np.testing.assert_allclose(ds["cosine"].values[used], 1, atol=2e-5)
    np.testing.assert_allclose(ds["magnitude"].values[used], 1, atol=1e-6)
    np.testing.assert_allclose(ds["support_cosine"].values[used], 1, atol=2e-5)
    sure = ds["reliable"].values[:, 0] > 0
    np.testing.assert_allclose(ds["disattenuated"].values[sure], 1, atol=1e-5)
    assert (ds["ceiling"].values[used] <= 1 + 1e-9).all()


def test_labels_drawn_from_the_model_itself_stay_inside_the_noise(traced):
    """The expected gradient of -log p at answers drawn from p is exactly zero: whatever is seen is noise."""
    model, rng = traced("gpt2"), np.random.default_rng(0)

    def drawn(prompts, i):
        likely = model.logits(prompts.clean[i][None])[0, -1].softmax(-1).double().numpy()
        likely[: min(3, len(likely))] = 0  # special tokens cannot be written as answers
        return int(rng.choice(len(likely), p=likely / likely.sum()))

    found, ceilings = [], []
    for seed in range(4):
        pair = [records(model, drawn, 32, 2 * seed + side, f"drawn {side}") for side in (0, 1)]
        ds = gradient_alignment(model, pair[0], tasks=task_list(pair[1]), batches=8)
        found.append(ds["clear"].values[:, 0, 1])
        ceilings.append(ds["ceiling"].sel(module="all").values)
    assert np.mean(found) < 0.1, "clear conflict or agreement of labels that mean nothing"
    assert np.abs(np.mean(ceilings)) < 0.35


def test_weights_flags_and_gradients_are_left_as_they_were(fresh, words):
    module = fresh("gpt2").train()
    for parameter in list(module.parameters())[:3]:
        parameter.requires_grad_(False)
    kept = torch.full_like(module.lm_head.weight, 2.0)
    module.lm_head.weight.grad = kept.clone() if module.lm_head.weight.requires_grad else None
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in module.named_parameters()}
    model = wrap(module, words, override=True)
    inner = [(p.requires_grad, p.grad) for p in model.plain.parameters()]
    gradient_alignment(model, make_task("ioi", n=8), tasks="subject_verb", batches=2)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
    assert module.training and [(p.requires_grad, p.grad) for p in model.plain.parameters()] == inner
    assert all(p.grad is None for p in model.bridge.parameters()) and torch.is_grad_enabled()


def adapted(module, *targets):
    torch.manual_seed(1)
    return get_peft_model(module, LoraConfig(target_modules=[*targets], r=4, init_lora_weights=False)).eval()


def test_an_adapter_is_measured_by_itself_or_beside_its_base(fresh, words):
    module = adapted(fresh("llama"), "q_proj", "v_proj", "down_proj")
    model, tasks = wrap(module, words), [make_task(name, n=8) for name in TASKS]
    bare = module.get_base_model()
    for parameter in bare.parameters():
        parameter.requires_grad_(True)
    table = jacobian(model, bare, tasks, 2)
    whole = gradient_alignment(model, tasks[0], tasks=",".join(TASKS[1:]), batches=2)
    agree(whole, divided(model), table)
    alone = gradient_alignment(model, tasks[0], tasks=",".join(TASKS[1:]), batches=2, parameters="adapter")
    np.testing.assert_allclose(alone["cosine"].sel(module="all"), whole["cosine"].sel(module="adapter"), atol=1e-6)
    assert {"base", "adapter"} <= set(whole["module"].values) and "base" not in alone["module"].values


def test_skills_that_a_task_does_not_use_are_left_out_of_the_support(fresh):
    """Poly, live: two tasks share one of two skills; the other one of each has no gradient."""
    torch.manual_seed(0)
    poly = get_peft_model(fresh("llama"), PolyConfig(target_modules=["q_proj"], r=2, n_tasks=2, n_skills=3)).eval()
    with torch.no_grad():
        for name, parameter in poly.named_parameters():
            if "module_logits" in name:
                parameter.copy_(torch.tensor([[200.0, 200.0, -200.0], [-200.0, 200.0, 200.0]]))
            if "poly_lora_B" in name:
                parameter.normal_(std=0.3)
    parameters = {n: p for n, p in poly.get_base_model().named_parameters() if "poly_lora" in n}
    pieces = tuple(Piece(i, p.numel(), "adapter") for i, p in enumerate(parameters.values()))
    units = (Unit("all", "whole", tuple(range(len(pieces)))),)
    division = Division(tuple(parameters), tuple(p.shape for p in parameters.values()), pieces, units)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 400, (4, 7)))
    rows = []
    with Shelf(division, 2, 2) as shelf:
        for _ in range(2):
            for task in range(2):
                logits = poly.base_model(input_ids=tokens, task_ids=torch.full((4,), task)).logits[:, -1]
                slopes = torch.autograd.grad(logits.log_softmax(-1)[:, task].mean(), list(parameters.values()))
                shelf.add(dict(zip(parameters, slopes, strict=True)))
                rows.append(torch.cat([slope.flatten() for slope in slopes]).double().numpy())
        grams = shelf.grams()
    one, other = rows[:2]
    both = (one != 0) & (other != 0)
    assert 0.3 < both.mean() < 0.34 and float(grams.common[:, 0, 1].sum()) == both.sum()
    found = measures(grams.of(units))
    expected = one @ other / (np.linalg.norm(one[both]) * np.linalg.norm(other[both]))
    np.testing.assert_allclose(found["support_cosine"][0, 0, 1], expected, rtol=1e-5)
    whole = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(found["cosine"][0, 0, 1], whole, rtol=1e-5)


def test_an_adapter_that_wants_to_know_the_task_is_refused(fresh, words):
    torch.manual_seed(0)
    poly = get_peft_model(fresh("llama"), PolyConfig(target_modules=["q_proj"], r=2, n_tasks=2, n_skills=2)).eval()
    model = wrap(poly, words, override=True)
    for analysis in (gradient_alignment, task_saliency):
        with pytest.raises(AnalysisError, match="other weights for every task; load it with route="):
            analysis(model, make_task("ioi", n=8), tasks="subject_verb")


def made(sizes):
    """A division of vectors: pieces of these sizes, each a parameter, and a unit for every piece and for all."""
    pieces = tuple(Piece(i, size, "other") for i, size in enumerate(sizes))
    units = tuple(Unit(f"u{i}", "matrix", (i,)) for i in range(len(sizes)))
    units += (Unit("all", "whole", tuple(range(len(sizes)))),)
    return Division(tuple(f"p{i}" for i in range(len(sizes))), tuple(torch.Size([s]) for s in sizes), pieces, units)


def shelved(rows, sizes, dtype="float32"):
    """Grams of rows [batch, task, number]."""
    division, ends = made(sizes), np.cumsum(sizes)[:-1]
    with Shelf(division, rows.shape[1], len(rows)) as shelf:
        for row in rows.reshape(-1, rows.shape[-1]):
            parts = np.split(row.astype(dtype), ends)
            shelf.add({f"p{i}": torch.from_numpy(part) for i, part in enumerate(parts)})
        return division, shelf.grams()


@pytest.mark.parametrize("held", [0, 1e9])
@pytest.mark.parametrize("block", [1, 64, 1000, 8e6])
def test_grams_do_not_depend_on_where_gradients_stand_or_how_many_columns_are_read(block, held, monkeypatch):
    monkeypatch.setattr(_shelf, "BLOCK", block)
    monkeypatch.setattr(_shelf, "HELD", held)
    rng = np.random.default_rng(0)
    rows, sizes = rng.normal(size=(3, 2, 60)), (7, 1, 30, 22)
    rows[:, 0, 40:50] = 0
    division, grams = shelved(rows, sizes, "float64")
    whole = np.einsum("btx,cux->btcu", rows, rows)
    np.testing.assert_allclose(grams.of(division.units).gram[-1], whole, rtol=1e-12)
    mean = rows.mean(0)
    energy = [[(mean[i] ** 2 * (mean[j] != 0)).sum() for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(grams.of(division.units).energy[-1], energy)
    assert grams.common[:, 0, 1].tolist() == [7, 1, 30, 12]


def test_an_incomplete_batch_does_not_count():
    rows = np.random.default_rng(0).normal(size=(5, 1, 8))
    division = made((8,))
    with Shelf(division, 2, 3) as shelf:
        for row in rows[:, 0]:
            shelf.add({"p0": torch.from_numpy(row.astype("float32"))})
        assert shelf.grams().gram.shape == (1, 2, 2, 2, 2)


def drawn(rng, true, batches, noise):
    """Gradients [batch, task, number] around the tasks' true ones."""
    return true + noise * rng.normal(size=(batches, *true.shape)) / np.sqrt(true.shape[1])


def pair_at(cosine, width):
    true = np.zeros((2, width))
    true[0, 0], true[1, 0], true[1, 1] = 1, cosine, np.sqrt(1 - cosine**2)
    return true


def measured(rows):
    grams = np.einsum("btx,cux->btcu", rows, rows)[None]
    common = np.full((1, rows.shape[1], rows.shape[1]), rows.shape[2], float)
    return {name: values[0] for name, values in measures(Grams(grams, grams.mean((1, 3)), common)).items()}


@pytest.mark.parametrize(("cosine", "noise", "batches"), [(0.0, 1, 4), (-0.5, 1, 8), (0.9, 3, 8), (0.9, 0.5, 4)])
def test_the_interval_holds_the_cosine_to_expect_as_often_as_it_says(cosine, noise, batches):
    rng, width = np.random.default_rng(0), 40
    expected = cosine / (1 + noise**2 / batches)
    found = [measured(drawn(rng, pair_at(cosine, width), batches, noise)) for _ in range(400)]
    inside = [f["cosine_low"][0, 1] <= expected <= f["cosine_high"][0, 1] for f in found]
    assert np.mean(inside) >= 0.93
    assert np.mean([f["cosine"][0, 1] for f in found]) == pytest.approx(expected, abs=0.05)


def test_batches_that_share_their_prompts_between_tasks_have_honest_intervals_too():
    """Both tasks' noise is the same but for its sign, as that of opposite answers to the same prompts."""
    rng, width, batches, inside = np.random.default_rng(1), 40, 6, []
    expected = (0.5 - 1 / batches) / (1 + 1 / batches)
    for _ in range(400):
        shared = rng.normal(size=(batches, width)) / np.sqrt(width)
        rows = pair_at(0.5, width) + shared[:, None] * np.array([1, -1])[:, None]
        found = measured(rows)
        inside.append(found["cosine_low"][0, 1] <= expected <= found["cosine_high"][0, 1])
    assert np.mean(inside) >= 0.93


def test_the_ceiling_is_the_cosine_of_two_independent_sets_and_corrects_for_noise():
    rng, width, noise = np.random.default_rng(2), 30, 2.0
    true, seen = pair_at(0.6, width), []
    for _ in range(300):
        one, other = (drawn(rng, true[:1], 8, noise).mean((0, 1)) for _ in "ab")
        seen.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    found = [measured(drawn(rng, true, 8, noise)) for _ in range(300)]
    assert np.mean([f["ceiling"].mean() for f in found]) == pytest.approx(np.mean(seen), abs=0.03)
    sure = [f["disattenuated"][0, 1] for f in found if f["reliable"].all()]
    assert np.mean(sure) == pytest.approx(0.6, abs=0.06)
    assert np.mean([f["cosine"][0, 1] for f in found]) < 0.45  # what the noise makes of it


def test_pure_noise_has_no_ceiling_and_is_seldom_clear():
    rng, width = np.random.default_rng(3), 200
    found = [measured(rng.normal(size=(8, 2, width))) for _ in range(300)]
    assert np.mean([f["ceiling"] for f in found]) == pytest.approx(0, abs=0.02)
    assert np.mean([f["clear"][0, 1] for f in found]) <= 0.05
    z = np.array([f["z"][0, 1] for f in found])
    assert z.std() == pytest.approx(1, abs=0.1) and found[0]["floor"][0, 1] == pytest.approx(width**-0.5)
    assert np.mean([f["conflict"][0, 1] for f in found]) == pytest.approx(0.5, abs=0.03)
    assert not np.any([f["disattenuated"][0, 1] for f in found if not f["reliable"].all()])


def test_a_task_without_a_gradient_gives_zeros_not_nothing():
    rows = np.random.default_rng(0).normal(size=(4, 2, 12))
    rows[:, 1] = 0
    found = measured(rows)
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["cosine"][0, 1] == found["cosine"][1, 1] == found["norm"][1] == found["ceiling"][1] == 0
    assert found["cosine_low"][0, 1] == found["cosine_high"][0, 1] == 0 and not found["clear"][0, 1]


def test_cosines_of_one_batch_are_what_a_training_loop_asks_for():
    rows = np.random.default_rng(0).normal(size=(1, 3, 20))
    division, grams = shelved(rows, (5, 15))
    found = cosines(grams.of(division.units).gram.mean((1, 3)))
    unit = rows[0] / np.linalg.norm(rows[0], axis=1, keepdims=True)
    np.testing.assert_allclose(found[-1], unit @ unit.T, atol=1e-6)


def test_a_disk_without_room_is_said_before_anything_runs(traced, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(_shelf, "HELD", 0)
    monkeypatch.setattr(_shelf.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(AnalysisError, match=r"The gradients do not fit on the disk .* GB.*TMPDIR"):
        gradient_alignment(traced("gpt2"), make_task("ioi", n=8), tasks="subject_verb", batches=2)


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_a_file_gives_the_same_and_is_not_left(family, traced, monkeypatch, tmp_path):
    model, task = traced(family), make_task("ioi", n=8)
    before = gradient_alignment(model, task, tasks="subject_verb", batches=2)
    monkeypatch.setattr(_shelf.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_shelf, "HELD", 0)
    after = gradient_alignment(model, task, tasks="subject_verb", batches=2)
    assert not list(tmp_path.iterdir())
    for name in before.data_vars:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=2e-5, err_msg=str(name))


def test_what_cannot_be_compared_is_refused(traced, saved):
    model, task = traced("gpt2"), make_task("ioi", n=8)
    with pytest.raises(AnalysisError, match="batches is 1; it must be 2 or more"):
        gradient_alignment(model, task, tasks="subject_verb", batches=1)
    with pytest.raises(AnalysisError, match="9 batches need as many prompts, but a task has 8"):
        gradient_alignment(model, task, tasks="subject_verb", batches=9)
    with pytest.raises(AnalysisError, match=r"'ioi .s2_to_io.' is there twice"):
        gradient_alignment(model, task, tasks="ioi", batches=2)
    with pytest.raises(AnalysisError, match="there is only one; name others"):
        gradient_alignment(model, task, tasks=",", batches=2)
    with pytest.raises(AnalysisError, match=r"JSON list.*task_list"):
        gradient_alignment(model, task, tasks="[1, 2", batches=2)
    with pytest.raises(AnalysisError, match="no live adapter; use parameters='all'"):
        gradient_alignment(model, task, tasks="subject_verb", parameters="adapter")
    with pytest.raises(wb.WorkbenchError, match=r"no task 'oii'.*Did you mean 'ioi'"):
        gradient_alignment(model, make_task("subject_verb", n=8), tasks="oii")
    with pytest.raises(TaskError, match="no corruption 'x'"):
        gradient_alignment(model, make_task("subject_verb", n=8), tasks="ioi:x")
    with pytest.raises(AnalysisError, match="fold=False"):
        gradient_alignment(load(saved("gpt2"), device="cpu", fold=True), task, tasks="subject_verb")


def test_without_names_every_other_shipped_task_is_compared(traced):
    from workbench.tasks import TASKS as SHIPPED

    ds = gradient_alignment(traced("gpt2"), make_task("ioi", n=8), batches=2)
    assert {title.split(" (")[0] for title in ds["task"].values} == set(SHIPPED)


def test_stopping_gives_the_batches_that_every_task_had(traced):
    model, task = traced("gpt2"), make_task("ioi", n=8)
    full = gradient_alignment(model, make_task("ioi", n=6), tasks="subject_verb", batches=3)
    with reporting(lambda what, done, total: done < 7):
        part = gradient_alignment(model, task, tasks=task_list(make_task("subject_verb", n=8)), batches=4)
    assert part["seed"].values.tolist() == [0, 1, 2] and part.attrs["n"] == 6
    np.testing.assert_allclose(part["cosine"], full["cosine"], atol=1e-6)
    with reporting(lambda what, done, total: done < 3), pytest.raises(Cancelled, match="two batches"):
        gradient_alignment(model, task, tasks="subject_verb", batches=4)


def test_a_result_is_kept_made_again_and_joined_along_training(saved):
    folder, task = str(saved("gpt2")), make_task("ioi", n=8)
    ds = wb.run("gradient_alignment", folder, task, tasks="subject_verb:number", batches=2)
    again, difference = wb.rerun(ds)
    assert difference == 0 and again.attrs["task"] == ds.attrs["task"]
    xr.testing.assert_identical(
        wb.run("gradient_alignment", folder, task, tasks="subject_verb:number", batches=2), again
    )
    both = wb.concat({"0": ds, "10": again}, "checkpoint")
    assert both["cosine"].dims == ("checkpoint", "module", "task", "receiver") and both["kind"].dims == ("module",)


@pytest.mark.parametrize("held", [0, 1e9])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_products_give_what_whole_matrices_give(family, held, traced, monkeypatch):
    """One token's gradient of a matrix has rank 1; so have few tokens' of a wide one: they are never made whole."""
    model, task = traced(family), make_task("ioi", n=8)
    monkeypatch.setattr(_shelf, "HELD", held)
    found = []
    for worth in (0, 1e9):
        monkeypatch.setattr(_slopes, "WORTH", worth)
        found.append(gradient_alignment(model, task, tasks="subject_verb", batches=2, batch=3))
    for name in found[0].data_vars:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-4, atol=2e-5, err_msg=name)


class Twice(torch.nn.Module):
    """A layer whose matrix is used outside of it too, one that is tied to an embedding, one that is used twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Embedding(7, 5, padding_idx=0), torch.nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight
        self.again, self.leaking, self.idle = (torch.nn.Linear(5, 5) for _ in range(3))

    def forward(self, ids):
        hidden = self.again(self.again(self.embed(ids)).tanh())
        return self.out(self.leaking(hidden) + self.leaking.weight.sum(0)).logsumexp(-1).sum()


def test_matrices_used_outside_their_layer_are_left_to_autograd():
    torch.manual_seed(0)
    module, ids = Twice(), torch.tensor([[0, 1, 2, 0], [3, 3, 6, 1]])
    names = tuple(name for name, _ in module.named_parameters())
    loss = module(ids)
    expected = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    slopes = Slopes(module, names)
    slopes.believe(lambda: module(ids[:1]))
    value, found = slopes(lambda: module(ids))
    assert value == pytest.approx(loss.item())
    assert isinstance(found["again.weight"], list) and isinstance(found["embed.weight"], list)
    assert isinstance(found["leaking.weight"], torch.Tensor) and "idle.bias" not in found
    for name, slope in zip(names, expected, strict=True):
        if slope is not None:
            torch.testing.assert_close(dense(found[name], slope.shape), slope)
