"""Routing: sums against loops, chance against enumeration, routers set by hand, and the memory it takes."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
import xarray as xr

from workbench.analyses import AnalysisError, routing
from workbench.analyses._routing import RANDOM, Tally
from workbench.analyses._routing_chance import divergence, even_counts, independent_pairs, information, overlap
from workbench.analyses._routing_vocabulary import frequent, specialised
from workbench.analyses.routing import _chances, _summary, _together
from workbench.models.load import wrap
from workbench.models.reference import ModelError
from workbench.models.routers import Routed
from workbench.models.trunk import share_weights
from workbench.tasks import make_task

PROMPTS, LENGTH, LAYERS, EXPERTS, K = 5, 7, (1, 3), 6, 3
RULE = "softmax over all"


def batch(rng, rows, k=K, experts=EXPERTS):
    """Routing of some rows, by scores other than the logits, as with groups or a bias; in no order."""
    logits = torch.from_numpy(rng.normal(size=(rows, LENGTH, experts)))
    chosen = (logits + torch.from_numpy(rng.normal(size=logits.shape))).topk(k).indices.flip(-1)
    return logits, chosen, logits.softmax(-1).gather(-1, chosen)


def tallied(split, seed=0):
    """A tally of all rows in batches of `split`, and what it was given, by layer."""
    rng = np.random.default_rng(seed)
    counted = rng.random((PROMPTS, LENGTH)) < 0.8
    given = {layer: batch(rng, PROMPTS) for layer in LAYERS}
    random = torch.from_numpy(rng.normal(size=(PROMPTS, LENGTH, RANDOM, EXPERTS)))
    tally = Tally(dict.fromkeys(LAYERS, RULE), counted, 2)
    for start in range(0, PROMPTS, split):
        rows = slice(start, start + split)
        for layer, parts in given.items():
            tally.add(start, Routed(layer, *(part[rows] for part in parts)), random[rows])
    return tally, given, counted, random


@pytest.mark.parametrize("split", [1, 2, 5])
def test_sums_are_those_of_loops_over_tokens(split):
    tally, given, counted, random = tallied(split)
    kept = tally.first(PROMPTS)
    for place, layer in enumerate(LAYERS):
        logits, chosen, weights = (part.numpy() for part in given[layer])
        for row, pos in itertools.product(range(PROMPTS), range(LENGTH)):
            order = sorted(zip(chosen[row, pos], weights[row, pos], strict=True), key=lambda c: -logits[row, pos][c[0]])
            assert kept["chosen"][row, pos, place].tolist() == [expert for expert, _ in order]
            others = [logits[row, pos, e] for e in range(EXPERTS) if e not in chosen[row, pos]]
            margin = min(logits[row, pos, e] for e in chosen[row, pos]) - max(others)
            assert kept["margins"][row, pos, place] == pytest.approx(margin, rel=1e-5)
            best = random[row, pos].argsort(-1, descending=True)[:, :K]
            assert kept["first_random"][row, pos, :, place].tolist() == best[:, 0].tolist()
            if row < 2:
                found = kept["shown_weight"][row, pos, place]
                np.testing.assert_allclose(found, [weight for _, weight in order], rtol=1e-6)
        for row in range(PROMPTS):
            here = [pos for pos in range(LENGTH) if counted[row, pos]]
            expected = {name: np.zeros(EXPERTS) for name in ("count", "top1", "gate", "probability")}
            sums = dict.fromkeys(("entropy", "z_loss", "margin", "mass", "square", "square_chosen"), 0.0)
            for pos in here:
                p = torch.from_numpy(logits[row, pos]).softmax(-1).numpy()
                expected["probability"] += p
                expected["top1"][max(chosen[row, pos], key=lambda e: logits[row, pos, e])] += 1
                for expert, weight in zip(chosen[row, pos], weights[row, pos], strict=True):
                    expected["count"][expert] += 1
                    expected["gate"][expert] += weight
                own = p[chosen[row, pos]]
                sums["mass"] += own.sum()
                sums["square"] += (p**2).sum()
                sums["square_chosen"] += (own**2).sum()
                sums["entropy"] += -(p * np.log(p)).sum()
                sums["z_loss"] += float(torch.from_numpy(logits[row, pos]).logsumexp(-1)) ** 2
                sums["margin"] += kept["margins"][row, pos, place]
            for name, value in {**expected, **sums}.items():
                np.testing.assert_allclose(kept[name][row, place], value, rtol=1e-5, err_msg=name)


def test_measures_are_those_of_all_tokens_in_one():
    tally, given, counted, _ = tallied(2)
    found = xr.Dataset(_summary(tally.first(PROMPTS), counted, 0))
    for place, layer in enumerate(LAYERS):
        logits, chosen, weights = (part[torch.from_numpy(counted)] for part in given[layer])
        tokens, p = len(logits), logits.softmax(-1)
        counts = np.bincount(chosen.flatten().numpy(), minlength=EXPERTS)
        f, mean = counts / counts.sum(), p.mean(0).numpy()
        expected = {"load": counts / tokens, "balance": EXPERTS * (f * mean).sum(), "max_load": f.max()}
        expected["gate"] = (
            np.bincount(chosen.flatten().numpy(), weights.flatten().numpy(), EXPERTS) / weights.sum().item()
        )
        expected["load_cv2"] = counts.var() / counts.mean() ** 2
        entropies = torch.distributions.Categorical(probs=p).entropy()
        expected["token_entropy"] = entropies.mean().item() / np.log(EXPERTS)
        expected["marginal_entropy"] = -(mean * np.log(mean)).sum() / np.log(EXPERTS)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][place], value, rtol=1e-6, err_msg=name)
        for name in ("load", "gate", "top1", "token_entropy", "z_loss", "margin"):
            assert (found[f"{name}_low"] <= found[name] + 1e-12).all() and (
                found[name] <= found[f"{name}_high"] + 1e-12
            ).all()


def test_a_bootstrap_interval_of_the_load_covers_as_often_as_it_says():
    """Sequences differ in how much they use an expert; of many samples, about 95 % hold the true load."""
    hits, rng = 0, np.random.default_rng(0)
    for seed in range(200):
        share = rng.beta(2, 6, size=60)
        count = rng.binomial(50, share)
        sums = {"count": np.stack([count, 50 - count], -1)[:, None]}
        sums |= {name: sums["count"] for name in ("top1", "gate", "probability")}
        sums |= {name: np.ones((60, 1)) for name in ("entropy", "z_loss", "margin")}
        sums["margins"] = np.ones((60, 50, 1))
        found = _summary(sums, np.ones((60, 50), bool), seed)
        hits += found["load_low"][1][0, 0] <= 0.25 <= found["load_high"][1][0, 0]
    assert 180 <= hits <= 199


def test_co_activation_counts_all_pairs():
    tally, given, counted, _ = tallied(2)
    found = _together(tally.first(PROMPTS)["pairs"], counted.sum())
    for place, layer in enumerate(LAYERS):
        chosen = given[layer][1].numpy()[counted]
        for i, j in itertools.product(range(EXPERTS), repeat=2):
            own = sum(i in token for token in chosen)
            both = sum(i in token and j in token for token in chosen)
            assert found["coactivation"][1][place, i, j] == pytest.approx(both / own)
    low, high = found["coactivation_low"][1], found["coactivation_high"][1]
    assert (low <= found["coactivation"][1]).all() and (found["coactivation"][1] <= high).all()


@pytest.mark.parametrize(("experts", "k"), [(5, 1), (5, 2), (6, 3), (6, 5)])
def test_pairs_by_chance_are_those_of_every_subset_with_these_loads(experts, k):
    weights = np.random.default_rng(experts + k).lognormal(sigma=1.2, size=experts)
    subsets = list(itertools.combinations(range(experts), k))
    share = np.array([np.prod(weights[list(subset)]) for subset in subsets])
    share /= share.sum()
    pairs = np.zeros((experts, experts))
    for subset, p in zip(subsets, share, strict=True):
        for i, j in itertools.product(subset, repeat=2):
            pairs[i, j] += p
    np.testing.assert_allclose(independent_pairs(np.diag(pairs), k), pairs, atol=1e-8)


def test_experts_that_are_always_or_never_chosen_have_their_pairs():
    load = np.array([1.0, 0.0, 0.5, 0.3, 0.2])
    found = independent_pairs(load, 2)
    np.testing.assert_allclose(found[0], load)
    assert not found[1].any() and found[2, 3] == pytest.approx(0.0)  # the first has one of the two places


def test_an_even_router_draws_every_subset_as_often():
    rng = np.random.default_rng(0)
    single = even_counts(1, 2, 4, 6000, rng)
    subsets, times = np.unique(single, axis=0, return_counts=True)
    assert len(subsets) == 6 and (subsets.sum(1) == 2).all() and set(np.unique(subsets)) == {0, 1}
    assert abs(times - 1000).max() < 150
    many = even_counts(300, 3, 8, 4000, rng)
    assert (many.sum(1) == 900).all()
    np.testing.assert_allclose(many.mean(0), 300 * 3 / 8, rtol=0.01)
    np.testing.assert_allclose(many.var(0), 300 * 3 / 8 * 5 / 8, rtol=0.08)
    cv2 = (many.var(1) / many.mean(1) ** 2).mean()
    assert cv2 == pytest.approx((8 - 3) / (3 * 300), rel=0.03)


@pytest.mark.parametrize(
    ("experts", "occurrences", "chance"),
    [(8, 10, 0.30), (8, 100, 0.18), (8, 1000, 0.14), (64, 10, 0.16), (64, 100, 0.05), (64, 1000, 0.03)],
)
def test_a_uniform_router_looks_as_specialised_as_rare_ids_make_it(experts, occurrences, chance):
    ids = np.repeat(np.arange(20000 // occurrences), occurrences)
    drawn = np.random.default_rng(0).integers(0, experts, (len(ids), 1))
    _, dense, sizes = frequent(ids, occurrences)
    assert specialised(dense, drawn, sizes, experts)[0] == pytest.approx(chance, abs=0.006)


def test_ids_that_occur_seldom_have_no_part():
    ids, experts = np.array([4, 4, 4, 9, 9, 7]), np.array([[0], [0], [1], [1], [1], [2]])
    kept, dense, sizes = frequent(ids, 2)
    assert kept.tolist() == [True] * 5 + [False] and sorted(sizes) == [2, 3]
    assert specialised(dense, experts[kept], sizes, 3)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert specialised(*frequent(ids, 99)[1:2], experts[:0], frequent(ids, 99)[2], 3).tolist() == [0.0]


def test_information_of_a_table_and_its_correction():
    assert information(np.diag([50, 50])) == pytest.approx(np.log(2) + 1 / 200)  # no empty-cell bias is taken off
    rng, table = np.random.default_rng(0), np.outer([3, 5], [2, 7, 1]) * 10
    assert information(table) == pytest.approx(-(2 - 1) * (3 - 1) / (2 * table.sum()))
    drawn = np.stack([rng.multinomial(200, np.full(56, 1 / 56)).reshape(7, 8) for _ in range(300)])
    cells = (drawn > 0).sum((-2, -1)) - (drawn.sum(-1) > 0).sum(-1) - (drawn.sum(-2) > 0).sum(-1) + 1
    plain = information(drawn) + cells / 400
    assert 0.05 < plain.mean() / np.log(7) < 0.07  # what chance gives K = 7, E = 8, B = 200
    assert abs(information(drawn).mean()) < 0.15 * plain.mean()
    assert information(np.zeros((2, 3))) == 0


def test_overlap_and_divergence_of_distributions():
    one, other = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0])
    assert overlap(one, one) == 1 and divergence(one, one) == 0
    assert overlap(one, other) == 0 and divergence(one, other) == pytest.approx(1)
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    kl = sum(0.5 * (part * np.log2(part / ((p + q) / 2))).sum() for part in (p, q))
    assert overlap(p, q) == pytest.approx(0.5) and divergence(p, q) == pytest.approx(kl)


@pytest.fixture(scope="module")
def by_hand(fresh, words):
    """A Mixtral whose token t goes to the experts t % 4 and, with less weight, (t + 1) % 4, in both layers."""
    module = fresh("mixtral")
    with torch.no_grad():
        table = module.model.embed_tokens.weight
        table.zero_()
        ids = torch.arange(len(table))
        table[ids, ids % 4] = 2.0
        table[ids, (ids + 1) % 4] = 1.0
        table[ids, 4 + ids % 28] += 0.1  # so that tokens differ
        for block in module.model.layers:
            block.self_attn.o_proj.weight.mul_(1e-3)
            block.mlp.experts.down_proj.mul_(1e-4)
            block.mlp.gate.weight.copy_(torch.eye(4, 32))
    return wrap(module, words)


def test_a_router_set_by_hand_routes_as_it_was_set(by_hand):
    ds = routing(by_hand, make_task("ioi"), length=24, sequences=6, shown=2, batch=4, occurrences=3)
    ids, counted = ds["token_id"].values, ds["counted"].values.astype(bool)
    assert not counted[:, 0].any() and counted[:, 1:].all(), "BOS is left out, and nothing else"
    first, second = ids % 4, (ids + 1) % 4
    for layer in (0, 1):
        chosen = ds["chosen"].sel(layer=layer).values
        assert (chosen[..., 0] == first).all() and (chosen[..., 1] == second).all()
        share = np.bincount(first[counted], minlength=4) / counted.sum()
        np.testing.assert_allclose(ds["top1"].sel(layer=layer), share)
        np.testing.assert_allclose(ds["load"].sel(layer=layer), share + np.roll(share, 1))
        np.testing.assert_allclose(ds["coactivation"].values[layer, 0, 2], 0)
        expected = share[0] / (share[0] + share[3])
        assert ds["coactivation"].values[layer, 0, 1] == pytest.approx(expected)
    at = ds.sel(measured="input token")
    assert (at["specialisation"] == 1).all() and (at["specialisation_null_high"] < 0.8).all()
    np.testing.assert_allclose(at["specialisation_p"], 1 / 101)
    assert ds.attrs["rule"] == "softmax over the chosen x 1" and (ds.attrs["k"], ds.attrs["experts"]) == (2, 4)
    assert ds.attrs["tokens"] == counted.sum() and "BOS" in ds.attrs["left_out"]
    assert (ds["shown_chosen"].values == ds["chosen"].values[:2]).all()
    np.testing.assert_allclose(ds["shown_probability"].sum("expert"), 1, rtol=1e-6)


def balance_of(seed, favour):
    """Measures of balance, and their chance, of a router that adds `favour` to the first expert's logits."""
    rng, counted = np.random.default_rng(seed), np.ones((20, LENGTH), bool)
    logits = torch.from_numpy(rng.normal(size=(20, LENGTH, EXPERTS)))
    logits[..., 0] += favour
    weights, chosen = logits.softmax(-1).topk(K)
    tally = Tally({0: RULE}, counted, 1)
    tally.add(0, Routed(0, logits, chosen, weights), torch.zeros(20, LENGTH, RANDOM, EXPERTS))
    kept = tally.first(20)
    ds = xr.Dataset(_summary(kept, counted, seed) | _chances(kept, counted, rng))
    return [bool(ds[name] > ds[f"{name}_null_high"]) for name in ("balance", "load_cv2", "max_load")]


def test_an_even_router_s_balance_passes_for_even_and_an_uneven_one_s_does_not():
    above = np.array([balance_of(seed, 0.0) for seed in range(60)])
    assert above.mean(0).max() <= 0.15 and balance_of(0, 1.0) == [True] * 3


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_routing_is_what_plain_transformers_gives(family, traced):
    model, task = traced(family), make_task("greater_than")
    ds = routing(model, task, length=16, sequences=5, batch=2, occurrences=2)
    tokens = task.documents(model.tokenizer, length=16, count=5, bos=True)
    with torch.no_grad():
        # A copy, as asking for router logits leaves transformers' own hooks behind.
        out = share_weights(model.plain)(torch.from_numpy(tokens), output_router_logits=True)
    for layer, flat in enumerate(out.router_logits):
        logits = flat.view(5, 16, -1)[:, 1:].reshape(-1, 4)
        chosen = logits.topk(2).indices
        counts = np.bincount(chosen.flatten().numpy(), minlength=4)
        np.testing.assert_allclose(ds["load"].sel(layer=layer), counts / len(logits))
        z = (logits.double().logsumexp(-1) ** 2).mean().item()
        assert float(ds["z_loss"].sel(layer=layer)) == pytest.approx(z, rel=1e-4)
        ordered = logits.sort(-1, descending=True).values
        assert float(ds["margin"].sel(layer=layer)) == pytest.approx(
            (ordered[:, 1] - ordered[:, 2]).mean().item(), rel=1e-3
        )


def test_what_cannot_be_routed_is_refused(traced):
    with pytest.raises(AnalysisError, match="length is 1; this model takes 2 to 128"):
        routing(traced("mixtral"), make_task("ioi"), length=1)
    with pytest.raises(ModelError, match="no experts"):
        routing(traced("gpt2"), make_task("ioi"), length=8, sequences=2)
    tally, rng = Tally({0: RULE}, np.ones((1, LENGTH), bool), 1), np.random.default_rng(0)
    with pytest.raises(AnalysisError, match="all 3 experts"):
        tally.add(0, Routed(0, *batch(rng, 1, k=3, experts=3)), torch.zeros(1, LENGTH, RANDOM, 3))


def test_a_hundred_thousand_tokens_of_a_large_model_stay_small():
    """16 layers, 64 experts, 8 a token: sums and choices of 100,000 tokens, and their summary, in 256 MB."""
    prompts, length, layers, experts, k = 1563, 64, 16, 64, 8
    counted, generator = np.ones((prompts, length), bool), torch.Generator().manual_seed(0)
    logits = torch.randn(8, length, experts, generator=generator)
    weights, chosen = logits.softmax(-1).topk(k)
    random = torch.randn(8, length, RANDOM, experts, generator=generator)
    tracemalloc.start()
    try:
        tally = Tally(dict.fromkeys(range(layers), RULE), counted, 4)
        for start in (0, 8, 1544):
            for layer in range(layers):
                tally.add(start, Routed(layer, logits, chosen, weights), random)
        found = tally.first(prompts)
        _summary(found, counted, 0)
        _together(found["pairs"], 3 * 8 * length)
        assert tracemalloc.get_traced_memory()[1] < 256 * 2**20
    finally:
        tracemalloc.stop()
