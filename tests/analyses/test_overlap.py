"""Overlap of circuits against sums by hand, exact expectations of its nulls, and the refusals."""

from itertools import permutations
from math import comb

import numpy as np
import pytest
import xarray as xr

from workbench.analyses import AnalysisError, circuit_sets, head_patching, overlap
from workbench.analyses.ablation import parse_sets
from workbench.analyses.overlap import _permuted
from workbench.models.graph import Graph
from workbench.schema import ATTRS, check
from workbench.tasks import make_task


def result(effect, task: str, **attrs) -> xr.Dataset:
    """A head_patching result with the effects given [layer, head]."""
    effect = np.asarray(effect, float)
    say = {"long_name": "recovered logit diff", "units": "share", "signed": 1}
    values = {"effect": effect, "effect_low": effect - 0.1, "effect_high": effect + 0.1}
    ds = xr.Dataset(
        {name: (("layer", "head"), value, say) for name, value in values.items()},
        coords={"layer": np.arange(effect.shape[0]), "head": np.arange(effect.shape[1])},
    )
    given = {"analysis": "head_patching", "primary": "effect", "task": task, "model": "m", "n": 8}
    ds.attrs = {name: "made up" for name in ATTRS} | given | attrs
    return check(ds)


# Ranks: A 1st (0,0), 2nd (1,2), 3rd (0,1); B 1st (1,2), 2nd (0,1), 3rd (1,0). Signs do not count.
A = [[-0.6, 0.1, 0.05], [0.0, 0.0, 0.25]]
B = [[0.0, -0.3, 0.0], [0.1, 0.0, 0.6]]


def test_a_small_example_by_hand():
    ds = overlap(result(A, "a"), result(B, "b"), top=1 / 3, draws=10)
    assert ds["size"].values.tolist() == [1, 2, 3, 4, 5, 6] and ds.attrs["chosen"] == 2
    np.testing.assert_allclose(ds["fraction"], np.arange(1, 7) / 6)
    # {00} {12} · {00,12} {12,01} · {00,12,01} {12,01,10} · all six
    np.testing.assert_allclose(ds["iou"].values[[0, 1, 2, 5]], [0, 1 / 3, 2 / 4, 1])
    # k = 2: A = .6/.85, .25/.85; B = .6/.9, .3/.9; least .25/.85 at 12; greatest .6/.85 + .6/.9 + .3/.9
    two = (0.25 / 0.85) / (0.6 / 0.85 + 0.6 / 0.9 + 0.3 / 0.9)
    # k = 3: A = .6, .25, .1 of .95; B = .6, .3, .1 of 1
    three = (0.25 / 0.95 + 0.1 / 0.95) / (0.6 / 0.95 + 0.6 + 0.3 + 0.1)
    np.testing.assert_allclose(ds["weighted"].values[:3], [0, two, three])
    np.testing.assert_array_equal(ds["member"].sel(task="a"), [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(ds["member"].sel(task="b"), [[0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(ds["shared"], [[0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(ds["effect"].sel(task="a"), A)


def test_three_tasks_share_what_all_of_them_hold():
    third = np.zeros((2, 3))
    third[1, 2], third[0, 0] = 0.5, 0.4
    ds = overlap(result(A, "a"), result(B, "b"), result(third, "c"), top=1 / 3, draws=10)
    # {00,12} {12,01} {12,00}: one of three
    np.testing.assert_allclose(ds["iou"].sel(size=2), 1 / 3)
    np.testing.assert_array_equal(ds["shared"], [[0, 0, 0], [0, 0, 1]])
    assert ds["task"].values.tolist() == ["a", "b", "c"]


def random_effects(seed: int, layers: int = 6, heads: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((layers, heads))


def test_equal_effects_overlap_wholly_and_chance_never_does():
    effect = random_effects(0)
    ds = overlap(result(effect, "a"), result(-effect, "b"), draws=300)
    np.testing.assert_allclose(ds["iou"], 1)
    np.testing.assert_allclose(ds["weighted"], 1)
    middle = int(np.argmin(abs(ds["size"].values - 24)))
    for null in ("null", "within"):
        np.testing.assert_allclose(ds[f"iou_{null}_p"].values[middle], 1 / 301)  # no draw of 300 gets there
        np.testing.assert_allclose(ds[f"iou_{null}_p"].values[-1], 1)  # all heads: every draw does
        assert ds[f"iou_{null}_high"].values[middle] < 1


def test_separate_effects_share_nothing():
    left, right = np.zeros((4, 4)), np.zeros((4, 4))
    left[:2], right[2:] = 0.1 + random_effects(1, 2, 4) ** 2, 0.1 + random_effects(2, 2, 4) ** 2
    ds = overlap(result(left, "a"), result(right, "b"), top=0.5, draws=50)
    upto = ds["size"].values <= 8
    np.testing.assert_array_equal(ds["iou"].values[upto], 0)
    np.testing.assert_array_equal(ds["weighted"].values[upto], 0)
    np.testing.assert_array_equal(ds["iou_null_p"].values[upto], 1)


def expected_iou(count: int, size: int) -> float:
    """E[|A∩B| / (2k - |A∩B|)] of two random sets of k out of `count`, from the hypergeometric distribution."""
    shared = range(max(0, 2 * size - count), size + 1)
    ways = [comb(size, s) * comb(count - size, size - s) for s in shared]
    assert sum(ways) == comb(count, size)
    return sum(w * s / (2 * size - s) for w, s in zip(ways, shared, strict=True)) / comb(count, size)


def test_the_null_over_all_heads_has_the_exact_mean():
    draws, effects = 4000, (random_effects(3), random_effects(4))
    ds = overlap(result(effects[0], "a"), result(effects[1], "b"), draws=draws)
    flat = abs(np.stack([e.ravel() for e in effects]))
    shuffled = _permuted(flat, np.zeros(48), 4000, np.random.default_rng(99))[1]
    for size in (2, 5, 12, 24):
        mine = set(np.argsort(-flat[0])[:size])
        drawn = [len(mine & set(row)) for row in np.argsort(-shuffled, axis=1)[:, :size]]
        spread = np.std([s / (2 * size - s) for s in drawn])
        found = ds["iou_null"].sel(size=size).item()
        assert abs(found - expected_iou(48, size)) < 3 * spread / np.sqrt(draws) + 1e-12


def test_the_null_within_layers_has_the_exact_mean():
    """Over all 3! x 3! ways to reorder the second task's heads within their layers."""
    ds = overlap(result(A, "a"), result(B, "b"), top=1 / 3, draws=6000)
    mine, ious = {(0, 0), (1, 2)}, []
    for first in permutations(range(3)):
        for second in permutations(range(3)):
            other = {(0, first[1]), (1, second[2])}  # where B's two strongest heads end up
            ious.append(len(mine & other) / len(mine | other))
    found = ds["iou_within"].sel(size=2).item()
    assert abs(found - np.mean(ious)) < 3 * np.std(ious) / np.sqrt(6000)


def test_shuffling_keeps_what_it_must():
    flat = abs(random_effects(5, 2, 24))
    layers = np.repeat(np.arange(6), 4)
    within = _permuted(flat, layers, 40, np.random.default_rng(0))
    freely = _permuted(flat, np.zeros(24), 40, np.random.default_rng(0))
    for drawn in (within, freely):
        assert drawn.shape == (2, 40, 24)
        assert (drawn[0] == flat[0]).all()
        np.testing.assert_array_equal(np.sort(drawn[1], axis=1), np.broadcast_to(np.sort(flat[1]), (40, 24)))
        assert len({tuple(row) for row in drawn[1]}) > 30
    by_layer = np.sort(within[1].reshape(40, 6, 4), axis=-1)
    np.testing.assert_array_equal(by_layer, np.broadcast_to(np.sort(flat[1].reshape(6, 4), axis=-1), (40, 6, 4)))
    assert (np.sort(freely[1].reshape(40, 6, 4), axis=-1) != by_layer).any()


def test_layers_need_not_come_in_order():
    groups = np.array([2, 0, 1, 0, 2, 1])
    drawn = _permuted(np.stack([np.arange(6.0)] * 2), groups, 30, np.random.default_rng(1))[1]
    assert (groups[drawn.astype(int)] == groups).all()


def test_p_is_the_share_of_draws_at_or_above_what_was_seen():
    ds = overlap(result(A, "a"), result(B, "b"), top=1 / 3, draws=999)
    for null in ("null", "within"):
        count = ds[f"iou_{null}_p"] * 1000 - 1
        np.testing.assert_allclose(count, count.round(), atol=1e-9)
    # k = 2 of 6: at least one of the two shared in 1 - 6/15 of all cases
    assert abs(ds["iou_null_p"].sel(size=2).item() - (1 - 6 / 15)) < 0.05
    # k = 1: nothing is shared, and every draw has at least that
    assert ds["iou_null_p"].sel(size=1).item() == 1


def test_the_same_seed_gives_the_same_result():
    first, second = (overlap(result(A, "a"), result(B, "b"), draws=20, seed=3) for _ in range(2))
    xr.testing.assert_equal(first, second)
    other = overlap(result(A, "a"), result(B, "b"), draws=20, seed=4)
    assert not other["weighted_null"].equals(first["weighted_null"])


@pytest.mark.parametrize("top", [0, -0.1, 1.1, float("nan")])
def test_a_circuit_has_some_of_the_heads(top):
    with pytest.raises(AnalysisError, match=f"top is {top}"):
        overlap(result(A, "a"), result(B, "b"), top=top)


@pytest.mark.parametrize("draws", [0, -5])
def test_a_null_needs_draws(draws):
    with pytest.raises(AnalysisError, match=f"draws is {draws}"):
        overlap(result(A, "a"), result(B, "b"), draws=draws)


def test_what_cannot_be_compared_is_refused():
    first = result(A, "a")
    with pytest.raises(AnalysisError, match="two or more"):
        overlap(first)
    with pytest.raises(AnalysisError, match="different analyses or models"):
        overlap(first, result(B, "b", model_hash="another"))
    with pytest.raises(AnalysisError, match="different analyses or models"):
        overlap(first, result(B, "b", analysis="sink_aware_patching"))
    with pytest.raises(AnalysisError, match="stopped early"):
        overlap(first, result(B[:1], "b"))
    with pytest.raises(AnalysisError, match=r"given twice \(a\)"):
        overlap(first, result(B, "a"))
    with pytest.raises(AnalysisError, match="layer x head"):
        overlap(first, result(B, "b").expand_dims(pos=["END", "S2"]))
    with pytest.raises(AnalysisError, match="layer x head"):
        overlap(first, result(B, "b").drop_vars("effect"))


def edge_result(seed: int, task: str, score: np.ndarray | None = None) -> xr.Dataset:
    """As edge_attribution gives it, with made-up scores."""
    graph = Graph(2, 3, 3)
    rng = np.random.default_rng(seed)
    score = np.where(graph.valid, rng.normal(size=graph.valid.shape) if score is None else score, 0)
    dims = ("receiver", "component")
    say = {"long_name": "edge score", "units": "share", "signed": 1}
    halves = np.stack([score + np.where(graph.valid, rng.normal(scale=0.01, size=score.shape), 0) for _ in range(2)])
    variables = {name: (dims, score, say) for name in ("score", "score_low", "score_high")}
    variables |= {"valid": (dims, graph.valid.astype(np.int8)), "score_split": (("seed", *dims), halves)}
    coords = {"receiver": graph.readers, "component": graph.writers, "seed": [0, 1]}
    shape = {"layers": 2, "heads": 3, "kv_heads": 3, "parallel": 0}
    attrs = dict.fromkeys((*ATTRS, "dtype", "folding", "bos"), "made up") | shape | {"task": task, "n": 9}
    return xr.Dataset(variables, coords=coords, attrs=attrs | {"primary": "score"})


def test_edges_are_compared_where_there_are_edges():
    graph, ones = Graph(2, 3, 3), np.random.default_rng(3).normal(size=Graph(2, 3, 3).valid.shape)
    a, b = edge_result(0, "a", ones), edge_result(1, "b", ones)
    ds = overlap(a, b, top=0.1, draws=50)
    chosen = round(0.1 * graph.valid.sum())
    assert ds.attrs["chosen"] == chosen and int(ds["shared"].sum()) == chosen and ds.attrs["primary"] == "score"
    assert not ds["member"].values[:, ~graph.valid].any()
    np.testing.assert_allclose(ds["iou"].values, 1)
    assert ds.attrs["rank"] == pytest.approx(1)
    assert float(ds["pair"].sel(task="a", measured="b")) == 1 and ds.attrs["rank_p"] < 0.05


def test_the_within_null_of_edges_keeps_their_kinds():
    """Where a kind's edges all have one size, shuffling within kinds changes nothing and shuffling all does."""
    sizes = 1.0 + Graph(2, 3, 3).types
    ds = overlap(edge_result(0, "a", sizes), edge_result(1, "b", sizes), top=0.1, draws=20)
    np.testing.assert_allclose(ds["iou_within"].values, ds["iou"].values)
    assert float(ds["iou_null"].values[3]) < 0.7


def test_the_ceiling_is_what_halves_of_one_task_share(zoo_model):
    one, other = (head_patching(zoo_model, make_task(t, n=16), draws=10) for t in ("ioi", "subject_verb"))
    ds = overlap(one, other, draws=20)
    assert 0 < float(ds["iou_ceiling"].min()) <= float(ds["iou_ceiling"].max()) == 1
    rng, found = np.random.default_rng(0), []
    metric = one["metric"].transpose("prompt", "layer", "head").values.reshape(16, -1)
    clean, corrupted = one["metric_clean"].values, one["metric_corrupted"].values
    for _ in range(20):
        tops = []
        for half in np.array_split(rng.permutation(16), 2):
            effect = (metric[half] - corrupted[half, None]).mean(0) / (clean[half] - corrupted[half]).mean()
            tops.append(set(np.argsort(-abs(effect), kind="stable")[: ds.attrs["chosen"]]))
        found.append(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    name = one.attrs["task"]
    assert float(ds["pair"].sel(task=name, measured=name)) == pytest.approx(np.mean(found))


def test_rank_is_spearmans_correlation(zoo_model):
    results = [head_patching(zoo_model, make_task(t, n=8), draws=10) for t in ("ioi", "subject_verb")]
    ranks = [np.argsort(np.argsort(abs(ds["effect"].values).ravel())) for ds in results]
    assert overlap(*results, draws=20).attrs["rank"] == pytest.approx(np.corrcoef(ranks)[0, 1])


def test_circuits_become_sets_of_heads(zoo_model):
    results = [head_patching(zoo_model, make_task(t, n=8), draws=10) for t in ("ioi", "subject_verb")]
    ds = overlap(*results, draws=5)
    sets = parse_sets(circuit_sets(ds), zoo_model.n_layers, zoo_model.n_heads)
    first, second = (set(sets[str(title)]) for title in ds["task"].values)
    assert set(sets["shared"]) == first & second and len(first) == ds.attrs["chosen"]
    for title, own, other in zip(ds["task"].values, (first, second), (second, first), strict=True):
        assert set(sets[f"only {title}"]) == own - other
    with pytest.raises(AnalysisError, match="overlap of heads"):
        circuit_sets(overlap(edge_result(0, "a"), edge_result(1, "b"), draws=5))
