"""Routing of adapters in the dataset of a mixture of experts: against tables set by hand, loops and closed forms."""

import functools
import json

import numpy as np
import pytest
import torch
import xarray as xr
from planted_adapters import KINDS, MIX, SKILLS, TASKS, by_hand, make, mixed

from workbench import store
from workbench.analyses import AnalysisError, expert_ablation, expert_similarity, route_surgery, routing, task_routing
from workbench.analyses._routing import as_sure, probabilities
from workbench.analyses._routing_chance import even_weights, information
from workbench.models.adapter_files import save_adapter
from workbench.models.load import load
from workbench.models.reference import ModelError
from workbench.schema import check
from workbench.tasks import make_task

SMALL = {"length": 12, "sequences": 6, "batch": 4, "shown": 2, "occurrences": 2}
TASK = make_task("ioi", n=8)
every_kind = pytest.mark.parametrize("kind", KINDS)
SPARSE = ("xlora_top", "arrow")


@pytest.fixture(scope="module")
def loaded(fresh, words, tmp_path_factory):
    """`loaded(kind)`: the model as it loads from disk, the PEFT model it was saved from, and the plain base."""

    @functools.cache
    def build(kind):
        folder = tmp_path_factory.mktemp(kind)
        module = make(kind, fresh, folder, words)
        save_adapter(module, folder / "saved")
        place = folder / "saved" / "arrow_router" if kind == "arrow" else folder / "saved"
        words.save_pretrained(place)
        if kind in ("poly", "mhr"):
            (place / "workbench.json").write_text(json.dumps({"tasks": list(TASKS)}))
        return load(place, device="cpu"), module, fresh("llama")

    return build


def weights_of(kind, loaded, tokens, at=(0, "q_proj"), task=0, **options):
    """Weights [row, pos, skill] of the first split, and logits, by hand."""
    _, module, base = loaded(kind)
    logits, seen = by_hand(kind, module, base, torch.from_numpy(tokens), task=task, **options)
    return seen[at][:, :, 0].expand(*tokens.shape, SKILLS).double().numpy(), logits


@every_kind
def test_routing_is_that_of_loops_over_tokens(kind, loaded):
    model = loaded(kind)[0]
    ds = routing(model, TASK, module="v_proj/0" if kind == "mhr" else "v_proj", **SMALL)
    counted = ds["counted"].values.astype(bool)
    for layer in (0, 1):
        weights, _ = weights_of(kind, loaded, ds["token_id"].values.astype(np.int64), (layer, "v_proj"))
        mine = weights[counted]
        at = ds.sel(layer=layer)
        np.testing.assert_allclose(at["gate"], mine.sum(0) / mine.sum(), atol=1e-6)
        np.testing.assert_allclose(at["top1"], np.bincount(mine.argmax(-1), minlength=SKILLS) / len(mine))
        used = (mine > 0) if kind in SPARSE else np.ones_like(mine, dtype=bool)
        np.testing.assert_allclose(at["load"], used.mean(0), atol=1e-6)
        if kind not in SPARSE:
            entropy = -(mine * np.log(np.maximum(mine, 1e-300))).sum(-1).mean() / np.log(SKILLS)
            np.testing.assert_allclose(at["token_entropy"], entropy, atol=1e-5)
            np.testing.assert_allclose(at["mass"].sum("prompt"), mine.sum(0), rtol=1e-5, atol=1e-5)
    assert ds.attrs["module"] == ("v_proj/0" if kind == "mhr" else "v_proj") and ds.attrs["experts"] == SKILLS
    assert ds.attrs["router"] == {"poly": "Poly", "mhr": "Poly", "arrow": "Arrow"}.get(kind, "X-LoRA")


@every_kind
def test_a_result_keeps_the_schema_repeats_and_survives_netcdf(kind, loaded, tmp_path):
    ds, again = (routing(loaded(kind)[0], TASK, **SMALL) for _ in range(2))
    assert check(ds) is ds
    xr.testing.assert_equal(again, ds)
    xr.testing.assert_equal(store.load(store.save(ds, tmp_path / "result.nc")), ds)


@pytest.mark.parametrize("kind", ["poly", "xlora"])
def test_where_all_skills_are_used_weights_are_what_is_told(kind, loaded):
    ds = routing(loaded(kind)[0], TASK, **SMALL | {"shown": 6})
    assert ds.attrs["dense"] == 1 and ds.attrs["k"] == SKILLS and ds.attrs["primary"] == "gate"
    for name in ("load", "coactivation", "coactivation_null", "balance", "balance_null", "balance_null_high"):
        np.testing.assert_allclose(ds[name], 1, err_msg=name)
    assert not ds["load_cv2"].any() and not ds["load_cv2_null_high"].any()
    np.testing.assert_allclose(ds["max_load"], 1 / SKILLS)
    np.testing.assert_allclose(ds["margin"], _margins(ds).mean((0, 1)), rtol=1e-5)
    assert ds["margin"].attrs["long_name"].startswith("greatest logit less the next")
    assert float(ds["gate_null"]) == 1 / SKILLS
    inside = (ds["gate"] >= ds["gate_null_low"]) & (ds["gate"] <= ds["gate_null_high"])
    # One task's routing is one draw of Poly's, so its largest weight is no surprise; X-LoRA's differ over many tokens.
    assert bool(inside.all()) if kind == "poly" else not bool(inside.all())


def _margins(ds):
    """Of the counted tokens of all sequences, which are those shown: [prompt, pos, layer]."""
    counted = ds["counted"].values.astype(bool)
    assert counted[:, 1:].all() and not counted[:, 0].any() and ds.sizes["component"] == ds.sizes["prompt"]
    ordered = np.sort(ds["shown_logits"].values[:, 1:].astype(float), -1)
    return ordered[..., -1] - ordered[..., -2]


def test_poly_routes_each_task_by_its_own_id(loaded):
    for task, mix in zip(TASKS, MIX.numpy(), strict=True):
        ds = routing(loaded("poly")[0], make_task(task), **SMALL)
        for layer in (0, 1):
            np.testing.assert_allclose(ds["gate"].sel(layer=layer), mix, atol=1e-6)
        given = mix[mix > 0]
        np.testing.assert_allclose(ds["token_entropy"], -(given * np.log(given)).sum() / np.log(SKILLS), atol=1e-6)
        np.testing.assert_allclose(ds["gate_high"] - ds["gate_low"], 0, atol=1e-12)


def test_splits_of_a_multi_head_router_are_modules(loaded):
    model = loaded("mhr")[0]
    for split in (0, 1):
        ds = routing(model, TASK, module=f"q_proj/{split}", **SMALL)
        np.testing.assert_allclose(ds["gate"].values, MIX[[split, split]], atol=1e-6)
    with pytest.raises(
        ModelError, match=r"no routed module 'q_proj'; there are: q_proj/0, q_proj/1, v_proj/0, v_proj/1"
    ):
        routing(model, TASK, module="q_proj", **SMALL)


def test_an_unknown_task_is_refused_and_the_known_are_listed(loaded):
    for analysis in (routing, route_surgery, expert_ablation):
        with pytest.raises(ModelError, match="not trained on the task 'greater_than'; it knows: ioi, colored_objects"):
            analysis(loaded("poly")[0], make_task("greater_than", n=8))
    assert routing(loaded("arrow")[0], make_task("greater_than"), **SMALL).attrs["task"] == "greater_than"


def test_what_needs_blocks_of_experts_says_so(loaded):
    with pytest.raises(ModelError, match="skills are no blocks of experts"):
        expert_similarity(loaded("arrow")[0], TASK)


@pytest.mark.parametrize("alone", [False, True])
def test_the_even_range_of_a_weight_is_that_of_weights_renamed(alone):
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(6, 0.7), 1 if alone else 80)
    renamed = np.stack([rng.permuted(weights, axis=1).mean(0) for _ in range(20000)])
    low, high = even_weights(weights.mean(0), (weights**2).sum(-1).mean(), len(weights), alone=alone)
    np.testing.assert_allclose(np.quantile(renamed, [0.025, 0.975]), [low, high], atol=1e-12 if alone else 0.003)


def test_random_routers_are_as_sure_as_the_router():
    rng = np.random.default_rng(0)
    logits, scores = 3 + 2 * rng.normal(size=(5, 4)), 90 * rng.normal(size=(5, 4))
    found = as_sure(scores, logits)
    np.testing.assert_allclose(found.mean(-1), logits.mean(-1))
    np.testing.assert_allclose(found.std(-1), logits.std(-1))
    assert (found.argsort(-1) == scores.argsort(-1)).all()
    assert not as_sure(np.ones((1, 4)), logits[:1]).std()
    np.testing.assert_allclose(probabilities(found, "softmax over all").sum(-1), 1)


def told(table):
    """Mutual information in nats of a table of weights, by its definition."""
    share = table / table.sum()
    alone = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    return sum(p * np.log(p / q) for p, q in zip(share.ravel(), alone.ravel(), strict=True) if p > 0)


def test_information_of_weights_is_not_corrected():
    table = np.random.default_rng(0).random((3, 4))
    assert information(table, corrected=False) == pytest.approx(told(table))
    assert information(table * 50, corrected=False) == pytest.approx(told(table))
    assert information(table * 50) < told(table)


@pytest.mark.parametrize("kind", ["poly", "xlora"])
def test_information_about_the_task_is_by_weight_where_all_skills_are_used(kind, loaded):
    results = [routing(loaded(kind)[0], make_task(task), **SMALL) for task in TASKS]
    ds = task_routing(*results, draws=40)
    assert ds["measured"].values.tolist() == ["task, first choice", "task, gate weight", "task given the token"]
    for layer in (0, 1):
        table = np.stack([each["mass"].sel(layer=layer).sum("prompt").values for each in results])
        at = ds.sel(layer=layer, measured="task, gate weight")
        assert float(at["specialisation"]) == pytest.approx(told(table) / np.log(3), abs=1e-9)
        shares = table / table.sum(1, keepdims=True)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            expected = np.minimum(shares[a], shares[b]).sum()
            assert float(ds["similarity"].sel(layer=layer)[a, b]) == pytest.approx(expected)
        assert bool(at["specialisation"] > at["specialisation_null_high"]) or kind == "xlora"
    assert ds.attrs["module"] == "q_proj" and ds.attrs["dense"] == 1
    assert "gate weight" in ds["similarity"].attrs["long_name"]
    if kind == "poly":
        np.testing.assert_allclose(ds["similarity"].values[0], [[1, 0, 0.5], [0, 1, 0], [0.5, 0, 1]], atol=1e-6)


def test_sparse_skills_count_by_choice(loaded):
    results = [routing(loaded("arrow")[0], make_task(task), **SMALL) for task in TASKS[:2]]
    assert "task, all choices" in task_routing(*results, draws=20)["measured"]
    other = routing(loaded("arrow")[0], make_task(TASKS[2]), module="v_proj", **SMALL)
    with pytest.raises(AnalysisError, match="differ in params, module"):
        task_routing(results[0], other)


def metric(logits, prompts, row):
    return float(logits[prompts.answers[row]].mean() - logits[prompts.wrongs[row]].mean())


EDITS = {"mute": "L0E0=mute", "force": "L1E2=force@END", "weigh": "L0E1=0.5"}


def edited(what, weights):
    """The edits above on weights [row, pos, split, skill] of layer and map (0 or 1, q_proj), first split."""
    first = weights[:, :, 0].clone()
    if what == "mute":
        first[..., 0] = 0
        first = first / first.sum(-1, keepdim=True)
    elif what == "force":
        first[:, -1] = torch.eye(SKILLS)[2]
    else:
        first[..., 1] *= 0.5
    return torch.cat([first[:, :, None], weights[:, :, 1:]], 2)


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("kind", ["poly", "mhr", "xlora"])
def test_surgery_on_skills_equals_skills_added_up_by_hand(kind, what, loaded):
    model = loaded(kind)[0]
    ds = route_surgery(model, TASK, edits=EDITS[what], steps=1, prompt=2)
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    layer = 1 if what == "force" else 0
    for row, ids in enumerate(prompts.clean):
        for side, given in enumerate(({}, {(layer, "q_proj"): functools.partial(edited, what)})):
            _, logits = weights_of(kind, loaded, ids[None], change=given)
            assert ds["metric_prompt"].values[side, row] == pytest.approx(metric(logits[0, -1], prompts, row), abs=2e-4)
    assert ds.attrs["module"] == ("q_proj/0" if kind == "mhr" else "q_proj")
    assert bool((ds["metric_prompt"][0] != ds["metric_prompt"][1]).any())


@pytest.mark.parametrize("kind", ["poly", "xlora", "arrow"])
def test_the_code_that_is_shown_gives_the_numbers(kind, loaded):
    ds = route_surgery(loaded(kind)[0], TASK, edits="L0E2=force@END; L1E1=0.5", steps=1, prompt=2, module="v_proj")
    run = {}
    exec(ds.attrs["code"], run)
    best = run["probabilities"][0].topk(5)
    np.testing.assert_allclose(best.values, ds["top_probability"].values[1], atol=1e-6)
    assert len(run["routed"]) == 2 and "routed(" in ds.attrs["code"]


def test_an_unused_skill_taken_away_loses_nothing_and_a_used_one_what_it_does_by_hand(loaded):
    model = loaded("poly")[0]
    ds = expert_ablation(model, TASK, length=6, sequences=2)
    used, unused = ds.sel(expert=[0, 1]), ds.sel(expert=[2, 3])
    for name in ("metric_change", "loss_change"):  # run beside the controls, in which tokens of a row differ
        np.testing.assert_allclose(unused[name], 0, atol=2e-6)
    assert (abs(used["metric_change"]) > 1e-4).all() and (ds["load"] == 1).all()
    prompts = TASK.encode(model.tokenizer, bos=model.bos)
    found = []
    for row, ids in enumerate(prompts.clean):
        given = {(0, "q_proj"): functools.partial(edited, "mute")}
        sides = [weights_of("poly", loaded, ids[None], change=change)[1][0, -1] for change in ({}, given)]
        found.append(metric(sides[1], prompts, row) - metric(sides[0], prompts, row))
    np.testing.assert_allclose(ds["metric_change"].sel(layer=0, expert=0), np.mean(found), atol=2e-4)


def test_skills_add_up(loaded):
    """The table of the weights is linear in X-LoRA's skills, and in Poly's is not: A and B are mixed apart."""
    x = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))
    half = torch.tensor([0.5, 0.5, 0, 0])[None, None, None]
    for kind, linear in (("xlora", True), ("poly", False)):
        part = loaded(kind)[1].get_base_model().model.layers[0].self_attn.q_proj
        with torch.no_grad():
            both, *single = (mixed(part, x, w) for w in (half, half * torch.eye(4)[0], half * torch.eye(4)[1]))
        assert torch.allclose(both, sum(single), atol=1e-5) == linear


def test_the_shipped_skills_are_routed_by_task():
    """A trained Poly on a mixture of experts: its table by hand, and the experts of the base once a route is merged."""
    model = load("zoo/skills", device="cpu")
    layer = model.plain.model.layers[1].self_attn.v_proj
    for task in ("ioi", "subject_verb"):
        ds = routing(model, make_task(task), module="v_proj", **SMALL)
        likely = layer.poly_router["default"].module_logits[model.tasks.index(task)].detach().sigmoid()
        np.testing.assert_allclose(ds["gate"].sel(layer=1), likely / likely.sum(), rtol=1e-5)
    assert load("zoo/skills", device="cpu", route="ioi").routers.family == ""
