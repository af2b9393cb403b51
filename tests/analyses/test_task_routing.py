"""Routing between tasks and over training: loops and closed forms, planted alignment, and what chance passes for."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr

from workbench.analyses import AnalysisError, routing, routing_drift, task_routing
from workbench.schema import ATTRS
from workbench.tasks import make_task

LENGTH, EXPERTS, SEEDS = 12, 4, 2


def made(title, first, token_id, second=None):
    """A result as `routing` gives it, of one layer; the second choice is the next expert. The first token is BOS."""
    prompts = len(first)
    second = (first + 1) % EXPERTS if second is None else second
    chosen = np.stack([first, second], -1)[:, :, None].astype(np.int16)
    counted = np.ones((prompts, LENGTH), np.int8)
    counted[:, 0] = 0
    count = np.zeros((prompts, 1, EXPERTS), np.int32)
    for row, pos in itertools.product(range(prompts), range(1, LENGTH)):
        count[row, 0, chosen[row, pos, 0]] += 1
    load = count.sum(0) / counted.sum()
    other = np.random.default_rng(7).integers(0, EXPERTS, (prompts, LENGTH, SEEDS, 1)).astype(np.int16)
    node = ("layer", "expert")
    variables = {f"{name}{end}": (node, load) for name in ("load", "top1", "gate") for end in ("", "_low", "_high")}
    variables |= {"load_null": ((), np.array(0.5)), "count": (("prompt", *node), count)}
    variables |= {"chosen": (("prompt", "pos", "layer", "size"), chosen), "counted": (("prompt", "pos"), counted)}
    variables |= {
        "token_id": (("prompt", "pos"), token_id),
        "first_random": (("prompt", "pos", "seed", "layer"), other),
    }
    variables |= {"count_random": (("prompt", "seed", *node), np.repeat(count[:, None], SEEDS, 1))}
    coords = {"prompt": range(prompts), "pos": range(LENGTH), "layer": [3], "expert": range(EXPERTS)}
    coords |= {"size": [1, 2], "seed": range(SEEDS)}
    ds = xr.Dataset({k: (*v, {"long_name": k}) for k, v in variables.items()}, coords=coords)
    ds.attrs = dict.fromkeys(ATTRS, "made up") | {"analysis": "routing", "task": title, "n": prompts, "k": 2}
    ds.attrs |= {"experts": EXPERTS, "tokens": int(counted.sum()), "length": LENGTH, "left_out": "BOS", "params": "{}"}
    return ds


def drawn(rng, prompts=20, ids=30):
    """First choices and token ids that have nothing to do with anything."""
    shape = (prompts, LENGTH)
    return rng.integers(0, EXPERTS, shape), rng.integers(0, ids, shape)


def at(ds, measured, end=""):
    return float(ds[f"specialisation{end}"].sel(measured=measured).item())


def corrected(pairs):
    """Information of two labels, from their entropies with Miller and Madow's correction, in nats."""

    def entropy(labels):
        counts = {label: labels.count(label) for label in labels}
        total = len(labels)
        return -sum(c / total * np.log(c / total) for c in counts.values()) + (len(counts) - 1) / (2 * total)

    one, other = ([pair[side] for pair in pairs] for side in (0, 1))
    return entropy(one) + entropy(other) - entropy(pairs)


def test_information_is_that_of_loops_over_tokens():
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, EXPERTS - task, (6, LENGTH)), rng.integers(0, 5, (6, LENGTH))) for task in range(3)]
    ds = task_routing(*(made(f"task {i}", *part) for i, part in enumerate(parts)), draws=5)
    firsts, every, by_id = [], [], {}
    for task, (first, ids) in enumerate(parts):
        for row, pos in itertools.product(range(6), range(1, LENGTH)):
            expert = int(first[row, pos])
            firsts.append((task, expert))
            every += [(task, expert), (task, (expert + 1) % EXPERTS)]
            by_id.setdefault(int(ids[row, pos]), []).append((task, expert))
    scale = np.log(3)
    assert at(ds, "task, first choice") == pytest.approx(corrected(firsts) / scale)
    assert at(ds, "task, all choices") == pytest.approx(corrected(every) / scale)
    given = sum(len(pairs) * corrected(pairs) for pairs in by_id.values()) / len(firsts)
    assert at(ds, "task given the token") == pytest.approx(given / scale)
    assert ds["specialisation"].attrs["units"] == "share" and ds["specialisation_p"].attrs["units"] == "p"
    assert json.loads(ds.attrs["task"]) == ["task 0", "task 1", "task 2"]


def test_a_planted_alignment_lies_far_outside_the_null():
    rng, shape = np.random.default_rng(1), (20, LENGTH)
    ids = rng.integers(0, 6, (3, *shape))
    first = [np.where(rng.random(shape) < 0.9, task, rng.integers(0, EXPERTS, shape)) for task in range(3)]
    ds = task_routing(*(made(f"task {i}", first[i], ids[i]) for i in range(3)), draws=99)
    for kind in ("task, first choice", "task given the token"):
        assert at(ds, kind) > 0.5 > 0.1 > at(ds, kind, "_null_high") and at(ds, kind, "_p") == 0.01
        assert at(ds, kind, "_random_high") < 0.1
    assert float(ds["shared"]) == 1.0
    similar, low = ds["similarity"].values[0], ds["similarity_null_low"].values[0]
    off = ~np.eye(3, dtype=bool)
    assert (similar[off] < low[off]).all() and (np.diag(similar) > similar[off].max()).all()


def test_a_random_router_passes_for_chance_though_its_tokens_hang_together():
    """Each sequence likes an expert of its own, whatever its task: tokens are far from independent."""
    found = []
    for seed in range(40):
        rng, results = np.random.default_rng(seed), []
        for task in range(3):
            liked = rng.integers(0, EXPERTS, (20, 1))
            first, ids = drawn(rng)
            results.append(made(f"task {task}", np.where(rng.random(first.shape) < 0.7, liked, first), ids))
        ds = task_routing(*results, draws=39, seed=seed)
        found.append(ds["specialisation_p"].values[:, 0] <= 0.05)
    assert np.mean(found, axis=0).max() <= 0.15


def test_a_router_that_reads_words_only_tells_tasks_apart_but_not_given_the_word():
    found = []
    for seed in range(20):
        rng, results = np.random.default_rng(seed), []
        for task in range(2):
            ids = rng.integers(5 * task, 5 * task + 10, (15, LENGTH))
            first = np.where(rng.random(ids.shape) < 0.8, ids // 5, rng.integers(0, EXPERTS, ids.shape))
            results.append(made(f"task {task}", first, ids))
        ds = task_routing(*results, draws=39, seed=seed)
        assert 0.3 < float(ds["shared"]) < 0.7
        found.append((at(ds, "task, first choice", "_p") <= 0.05, at(ds, "task given the token", "_p") <= 0.05))
    words, given = np.mean(found, axis=0)
    assert words >= 0.9 and given <= 0.2


def test_tasks_with_experts_of_their_own_share_nothing():
    shape = (8, LENGTH)
    ids, zero = np.zeros(shape, int), np.zeros(shape, int)
    one, other = made("a", zero, ids, second=zero + 1), made("b", zero + 2, ids, second=zero + 3)
    ds = task_routing(one, other, draws=20)
    np.testing.assert_allclose(ds["similarity"].values[0], np.eye(2))
    n = 2 * 8 * (LENGTH - 1)
    for kind in ("task, first choice", "task given the token"):
        assert at(ds, kind) == pytest.approx((np.log(2) + 1 / (2 * n)) / np.log(2))
    assert ds["load"].sel(task="a").values.tolist() == one["load"].values.tolist()


def test_results_that_cannot_be_compared_are_refused():
    one, other = (made(name, *drawn(np.random.default_rng(seed))) for seed, name in enumerate("ab"))
    with pytest.raises(AnalysisError, match="two or more"):
        task_routing(one)
    with pytest.raises(AnalysisError, match=r"given twice \(a\)"):
        task_routing(one, one)
    with pytest.raises(AnalysisError, match="differ in n, k;"):
        task_routing(one, other.assign_attrs(k=3, n=7))
    with pytest.raises(AnalysisError, match="not joined"):
        task_routing(one, other.drop_vars("chosen"))


@pytest.fixture(scope="module")
def of_a_model(traced):
    small = {"length": 10, "sequences": 4, "batch": 4, "occurrences": 2}
    model = traced("mixtral")
    return [routing(model, make_task(name), **small) for name in ("ioi", "greater_than")]


def test_results_of_a_model_can_be_compared(of_a_model):
    ds = task_routing(*of_a_model, draws=9)
    assert ds.sizes == {"task": 2, "receiver": 2, "measured": 3, "layer": 2, "expert": 4}
    assert ds.attrs["primary"] == "specialisation" and ds.attrs["tokens"] == 2 * 4 * 9
    drift = routing_drift({"0": of_a_model[0], "1": of_a_model[0]}, draws=9)
    assert (drift["saturation"] == 1).all() and drift.attrs["tokens"] == 4 * 9


def test_saturation_and_drift_are_those_of_loops():
    rng, ids = np.random.default_rng(3), np.zeros((9, LENGTH), int)
    early, late = (rng.integers(0, EXPERTS, (9, LENGTH)) for _ in range(2))
    results = {100: made("a", early, ids), 900: made("a", late, ids)}
    ds = routing_drift(results, draws=200)
    shared, loads = [], np.zeros((2, EXPERTS))
    for row, pos in itertools.product(range(9), range(1, LENGTH)):
        sets = [{int(e), (int(e) + 1) % EXPERTS} for e in (early[row, pos], late[row, pos])]
        shared.append(len(sets[0] & sets[1]) / 2)
        for side, members in enumerate(sets):
            loads[side, list(members)] += 1 / (9 * (LENGTH - 1))
    first = ds.sel(checkpoint=100, layer=3)
    assert float(first["saturation"]) == pytest.approx(np.mean(shared))
    assert float(first["saturation_null"]) == pytest.approx((loads[0] * loads[1]).sum() / 2)
    assert float(first["overlap"]) == pytest.approx(np.minimum(*loads).sum() / 2)
    p, q = loads / 2
    halves = [0.5 * (part * np.log2(part / ((p + q) / 2))).sum() for part in (p, q)]
    assert float(first["divergence"]) == pytest.approx(sum(halves))
    for name in ("saturation", "overlap", "divergence"):
        assert (ds[f"{name}_low"] - 1e-12 <= ds[f"{name}_high"]).all()
    assert first["saturation_low"] <= first["saturation"] <= first["saturation_high"]
    assert abs(float(first["saturation"]) - float(first["saturation_null"])) < 0.1  # independent choices
    last = ds.sel(checkpoint=900)
    assert (last["saturation"] == 1).all() and (last["overlap"] == 1).all() and (last["divergence"] == 0).all()
    assert ds.attrs["uniform"] == 0.5 and ds.attrs["reference"] == "900"


def test_another_checkpoint_can_be_the_one_compared_with():
    ids, zero = np.zeros((4, LENGTH), int), np.zeros((4, LENGTH), int)
    results = {"start": made("a", zero, ids), "end": made("a", zero + 2, ids)}
    ds = routing_drift(results, reference="start", draws=10)
    assert ds["saturation"].values.ravel().tolist() == [1.0, 0.0]
    assert ds["divergence"].values.ravel().tolist() == [0.0, 1.0] and ds.attrs["reference"] == "start"


def test_checkpoints_that_cannot_be_compared_are_refused():
    rng = np.random.default_rng(0)
    one, other = made("a", *drawn(rng)), made("a", *drawn(rng))
    with pytest.raises(AnalysisError, match="two or more"):
        routing_drift({0: one})
    with pytest.raises(AnalysisError, match="no checkpoint 7 to compare with; there are 0, 1"):
        routing_drift({0: one, 1: one}, reference=7)
    with pytest.raises(AnalysisError, match="checkpoint 0 differs in their texts"):
        routing_drift({0: one, 1: other})
    with pytest.raises(AnalysisError, match="differs in n, k"):
        routing_drift({0: one.assign_attrs(k=5, n=1), 1: one})
