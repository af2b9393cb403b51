"""Changed routes, what they carry and experts as nodes: by hand over plain transformers, and in a planted model."""

import numpy as np
import pytest
import torch
from plain_experts import EXPERTS, K, Plain, metric, planted

from workbench.analyses import AnalysisError, routing_circuit
from workbench.analyses._expert_outputs import hear, part_of, refuse_other_sum
from workbench.analyses.routing_circuit import others
from workbench.models.load import wrap
from workbench.models.reference import ModelError
from workbench.tasks import make_task

TASK = make_task("subject_verb", n=9)
every_family = pytest.mark.parametrize("family", ["mixtral", "olmoe"])


@pytest.fixture(scope="module")
def planted_result(fresh, words):
    model, task = planted(fresh, words)
    return routing_circuit(model, task)


class Sides:
    """The two plain runs of one pair, and runs of either with something put in."""

    def __init__(self, plain, prompts, row):
        self.plain, self.prompts, self.row = plain, prompts, row
        self.ids = prompts.clean[row], prompts.corrupted[row]
        runs = [plain.run(ids[None]) for ids in self.ids]
        self.values, self.seen = [self.read(logits) for logits, _ in runs], [seen for _, seen in runs]
        used = [[seen[layer][1] > 0 for layer in (0, 1)] for seen in self.seen]
        self.changed = [(a != b).any(-1) for a, b in zip(*used, strict=True)]  # layer -> [1, pos]

    def read(self, logits):
        return metric(logits, [self.prompts.answers[self.row]], [self.prompts.wrongs[self.row]])[0]

    def rerouted(self, base, layers):
        def put(layer):
            mask, other = self.changed[layer][..., None], self.seen[1 - base][layer][1]
            return lambda logits, weights: other.where(mask, weights)

        return self.read(self.plain.run(self.ids[base][None], gate={layer: put(layer) for layer in layers})[0])

    def patched(self, layer, experts):
        def put(parts):
            parts = parts.clone()
            parts[:, :, experts] += (self.seen[0][layer][2] - self.seen[1][layer][2])[:, :, experts]
            return parts

        return self.read(self.plain.run(self.ids[1][None], part={layer: put})[0])


@every_family
@pytest.mark.parametrize("batch", [4, 64])
def test_everything_equals_plain_transformers(family, batch, traced, saved):
    model, plain = traced(family), Plain(saved(family), family)
    ds = routing_circuit(model, TASK, batch=batch)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    pairs = [Sides(plain, prompts, row) for row in range(len(prompts))]
    clean, corrupted = (np.array([pair.values[side] for pair in pairs]) for side in (0, 1))
    gap, near = (clean - corrupted).mean(), {"atol": 2e-4, "rtol": 1e-3}
    for layers, name, at in (([0], "carried", 0), ([1], "carried", 1), ([0, 1], "carried_all", None)):
        restored = np.array([pair.rerouted(1, layers) for pair in pairs]) - corrupted
        removed = clean - np.array([pair.rerouted(0, layers) for pair in pairs])
        found = ds[name].values if at is None else ds[name].values[:, at]
        np.testing.assert_allclose(found, [restored.mean() / gap, removed.mean() / gap], **near)
    for layer in (0, 1):
        each = [[pair.patched(layer, [e]) - pair.values[1] for e in range(EXPERTS)] for pair in pairs]
        np.testing.assert_allclose(ds["effect"].values[layer], np.mean(each, 0) / gap, **near)
        np.testing.assert_allclose(ds["effect_sum"].values[layer], np.sum(each, 1).mean() / gap, **near)
        whole = np.mean([pair.patched(layer, list(range(EXPERTS))) - pair.values[1] for pair in pairs])
        np.testing.assert_allclose(ds["effect_mlp"].values[layer], whole / gap, **near)
        tokens = np.concatenate([pair.changed[layer][0] for pair in pairs])
        np.testing.assert_allclose(ds["changed_tokens"].values[layer], tokens.mean())


@every_family
def test_what_is_said_of_each_position_is_that_of_its_tokens(family, traced, saved):
    model, plain = traced(family), Plain(saved(family), family)
    ds = routing_circuit(model, TASK)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    names = [str(name) for name in ds["pos"].values]
    assert names[-1] == "other tokens" and set(names[:-1]) == set.intersection(*map(set, prompts.positions))
    found = {"changed": [], "margin": [], "weight_moved": []}
    for row in range(len(prompts)):
        pair, marks = Sides(plain, prompts, row), prompts.positions[row]
        rest = [place for place in range(len(prompts.clean[row])) if place not in marks.values()]
        places = [*([marks[name]] for name in names[:-1]), rest]
        logits = [pair.seen[0][layer][0][0].sort(-1, descending=True).values for layer in (0, 1)]
        moved = [(pair.seen[0][layer][1] - pair.seen[1][layer][1])[0].abs().sum(-1) / 2 for layer in (0, 1)]
        for name, values in (
            ("changed", [side[0].double() for side in pair.changed]),
            ("margin", [side[:, K - 1] - side[:, K] for side in logits]),
            ("weight_moved", moved),
        ):
            found[name].append([[float(values[layer][at].mean()) for layer in (0, 1)] for at in places])
    for name, values in found.items():
        np.testing.assert_allclose(ds[name], np.mean(values, 0), atol=1e-5)
    assert (ds["changed_low"] <= ds["changed"] + 1e-12).all() and (ds["changed"] <= ds["changed_high"] + 1e-12).all()
    assert 0 < ds["changed"].sum() < ds["changed"].size


def test_a_control_is_the_same_with_random_other_experts(traced, saved):
    """The first control of the all-layers swap in the corrupted run, by hand."""
    model, plain = traced("mixtral"), Plain(saved("mixtral"), "mixtral")
    task = make_task("subject_verb", n=1)
    ds = routing_circuit(model, task)
    prompts = task.encode(model.tokenizer, bos=model.bos)
    pair, rng, given = Sides(plain, prompts, 0), np.random.default_rng([task.seed, 2, 0]), {}
    for layer in (0, 1):
        weights = pair.seen[0][layer][1]
        chosen = weights.argsort(-1, descending=True)[..., :K]
        random = torch.from_numpy(others(chosen.numpy(), EXPERTS, rng))
        instead = torch.zeros_like(weights).scatter(-1, random, weights.gather(-1, chosen))
        mask = pair.changed[layer][..., None]
        given[layer] = lambda logits, weights, new=instead, mask=mask: new.where(mask, weights)
    gain = pair.read(plain.run(pair.ids[1][None], gate=given)[0]) - pair.values[1]
    np.testing.assert_allclose(ds["carried_all_random"].values[0, 0], gain / np.subtract(*pair.values), rtol=1e-3)


def test_random_others_are_others_and_never_twice():
    rng, drawn = np.random.default_rng(0), []
    chosen = np.array([[[0, 3], [5, 1]]])
    for _ in range(200):
        drawn.append(others(chosen, 6, rng))
        assert all(len({*mine, *before}) == 4 for mine, before in zip(drawn[-1][0], chosen[0], strict=True))
    shares = [np.mean([e in found[0, 0] for found in drawn]) for e in (1, 2, 4, 5)]
    np.testing.assert_allclose(shares, 0.5, atol=0.12)
    few = others(np.array([[0, 1, 2]]), 4, rng)  # there is only one other
    assert 3 in few and len(set(few[0].tolist())) == 3


def test_the_planted_route_carries_all_of_the_gap(planted_result):
    ds = planted_result
    np.testing.assert_allclose(ds["changed"].sel(pos="END"), [1, 0])
    np.testing.assert_allclose(ds["changed"].sel(pos="other tokens"), [0, 0])
    np.testing.assert_allclose(ds["weight_moved"].sel(pos="END").values[0], 1 / (1 + np.exp(-8)), atol=1e-6)
    np.testing.assert_allclose(ds["margin"].sel(pos="END").values[0], 4, atol=1e-5)
    np.testing.assert_allclose(ds["carried"], [[1, 0], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(ds["carried_all"], [1, 1], atol=1e-6)
    np.testing.assert_allclose(ds["effect"], np.eye(2, EXPERTS) * [[1], [0]], atol=1e-6)
    np.testing.assert_allclose(ds["effect_mlp"], [1, 0], atol=1e-6)
    np.testing.assert_allclose(ds["effect_sum"], [1, 0], atol=1e-6)


def test_random_experts_carry_nothing_of_what_is_planted(planted_result):
    """None of the others writes the answer, so that the corrupted run gains nothing from them."""
    ds = planted_result
    np.testing.assert_allclose(ds["carried_random"].sel(measured="restored", layer=0), 0, atol=1e-5)
    assert ds["carried_p"].sel(measured="restored", layer=0) == pytest.approx(1 / 21)
    assert (ds["carried_random"].sel(layer=1) == 0).all() and (ds["carried_p"].sel(layer=1) == 1).all()


@every_family
def test_experts_called_alone_add_up_to_the_layer(family, traced):
    model = traced(family)
    heard = hear(model, model.tensor(np.random.default_rng(0).integers(3, 400, (2, 7))), 1)
    parts = sum(part_of(model, 1, heard, expert) for expert in range(EXPERTS))
    torch.testing.assert_close(parts, heard.out, atol=1e-5, rtol=1e-4)
    refuse_other_sum(1, parts, heard)
    with pytest.raises(AnalysisError, match="each called alone, are off by"):
        refuse_other_sum(1, parts * 1.01, heard)
    assert not model.routers.parts[1][1]._forward_hooks


def test_what_cannot_be_measured_is_refused(traced, fresh, words):
    with pytest.raises(AnalysisError, match="draws is 5; a 95 % band needs 20"):
        routing_circuit(traced("mixtral"), TASK, draws=5)
    with pytest.raises(ModelError, match="no experts"):
        routing_circuit(traced("gpt2"), TASK)
    dense = wrap(fresh("mixtral", num_local_experts=2), words)
    with pytest.raises(AnalysisError, match="uses every expert"):
        routing_circuit(dense, TASK)
