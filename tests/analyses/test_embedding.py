"""The map of tokens against NumPy, scikit-learn and brute force, and on planted clusters."""

import json

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from workbench.analyses import AnalysisError, embedding, routing
from workbench.analyses._places import INPUT, distances, nearest, principal, trust, umap
from workbench.analyses.embedding import _measures
from workbench.models.reference import ModelError
from workbench.models.trunk import share_weights
from workbench.progress import Cancelled, reporting
from workbench.registry import WorkbenchError
from workbench.tasks import make_task

TASK = make_task("subject_verb", n=8)
SMALL = {"length": 12, "sequences": 4, "batch": 3}


def same_up_to_sign(found: np.ndarray, expected: np.ndarray) -> None:
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def places(ds) -> np.ndarray:
    return np.stack([ds["x"].values, ds["y"].values], -1)


@pytest.mark.parametrize("shape", [(300, 20), (30, 60), (5000, 3)])  # more tokens, more numbers, several chunks
def test_principal_components_are_those_of_scikit_learn(shape):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=shape) * np.linspace(5, 0.1, shape[1]) + 40).astype(np.float32)
    scores, share = principal(values, 3)
    other = PCA(3, svd_solver="full").fit(values.astype(float))
    same_up_to_sign(scores, other.transform(values))
    np.testing.assert_allclose(share, other.explained_variance_ratio_, rtol=1e-6)
    assert scores.dtype == np.float32


def test_an_axis_points_where_its_largest_loading_does():
    line = np.outer(np.linspace(-1, 1, 40), [0.2, -3.0, 1.0])
    for sign in (1, -1):
        scores, share = principal((sign * line).astype(np.float32), 1)
        assert (np.diff(scores[:, 0] * -sign) > 0).all(), "the second number, turned positive, falls with the first"
        assert share[0] == pytest.approx(1)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_map_is_a_singular_value_decomposition_of_the_residual_stream(traced, layer):
    import torch

    model = traced("llama")
    ds = embedding(model, TASK, layer=layer, **SMALL)
    tokens = TASK.documents(model.tokenizer, length=12, count=4, bos=True)
    with torch.no_grad():
        states = share_weights(model.plain)(torch.tensor(tokens), output_hidden_states=True).hidden_states
    values = states[layer % 2][:, 1:].flatten(0, 1).double().numpy()
    values -= values.mean(0)
    left, size, _ = np.linalg.svd(values, full_matrices=False)
    same_up_to_sign(places(ds).reshape(-1, 2), left[:, :2] * size[:2])
    np.testing.assert_allclose(
        [ds.attrs["variance_x"], ds.attrs["variance_y"]], size[:2] ** 2 / (size**2).sum(), rtol=1e-4
    )
    assert ds.attrs["layer"] == layer % 2 and ds["x"].dtype == np.float32
    assert ds["pos"].values.tolist() == list(range(1, 12)), "BOS is not on the map"
    assert ds["token"].values.tolist() == [model.tokens(row[1:]) for row in tokens]
    assert (ds["first_expert"] == -1).all() and "entropy" not in ds and "no experts" in ds.attrs["routing"]


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_experts_and_router_logits_are_those_that_routing_reads(traced, family):
    model = traced(family)
    ds = embedding(model, TASK, space="router", layer=0, **SMALL)
    routed = routing(model, TASK, length=12, sequences=4, shown=4, occurrences=1).sel(layer=0)
    own = routed.isel(pos=slice(1, None))
    np.testing.assert_array_equal(ds["first_expert"], own["chosen"].isel(size=0))
    np.testing.assert_allclose(ds["entropy"], own["shown_entropy"], rtol=1e-5)
    probability = np.take_along_axis(own["shown_probability"].values, ds["first_expert"].values[..., None], -1)
    np.testing.assert_allclose(ds["probability"], probability[..., 0], rtol=1e-5)
    logits = own["shown_logits"].values.reshape(-1, model.routers.experts).astype(float)
    same_up_to_sign(places(ds).reshape(-1, 2), PCA(2).fit_transform(logits - logits.mean(1, keepdims=True)))
    residual = embedding(model, TASK, layer=0, **SMALL)
    np.testing.assert_array_equal(residual["first_expert"], ds["first_expert"])
    assert residual.attrs["width"] == 32 and ds.attrs["width"] == model.routers.experts


def test_several_tasks_share_one_map_and_take_turns(traced):
    model = traced("gpt2")
    ds = embedding(model, TASK, tasks="ioi, induction", **SMALL)
    names = json.loads(ds.attrs["tasks"])
    assert [name.split()[0] for name in names] == ["subject_verb", "ioi", "induction"]
    assert ds["task_index"].values.tolist() == [0, 1, 2] * 4
    text = make_task("ioi", seed=TASK.seed).documents(model.tokenizer, length=12, count=4, bos=True)
    assert ds["token"].values[1::3].tolist() == [model.tokens(row[1:]) for row in text]
    alone = embedding(model, TASK, **SMALL)
    assert alone["token"].values.tolist() == ds["token"].values[::3].tolist()
    with pytest.raises(AnalysisError, match=r"subject_verb \(.*\) would be on the map twice"):
        embedding(model, TASK, tasks="subject_verb", **SMALL)
    with pytest.raises(WorkbenchError, match="no task 'nonsense'"):
        embedding(model, TASK, tasks="nonsense", **SMALL)


@pytest.mark.parametrize("k", [1, 5, 15])
def test_trustworthiness_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(120, 6))
    on_map = values[:, :2] + rng.normal(0, 0.3, (120, 2))
    far = distances(values)
    seen, null = trust(far, nearest(distances(on_map), k), rng)
    assert seen == pytest.approx(trustworthiness(values, on_map, n_neighbors=k))
    shuffled = [trustworthiness(values, rng.permutation(on_map), n_neighbors=k) for _ in range(20)]
    assert null == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / np.sqrt(10))
    assert trust(far, nearest(far, k), rng)[0] == 1
    assert np.isinf(np.diag(far)).all()


def planted(prompts: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    """Tokens of two experts far apart in ten numbers; kinds that lie nowhere in particular."""
    expert = rng.integers(0, 2, (prompts, length))
    values = rng.normal(size=(prompts * length, 10)) + 30 * expert.reshape(-1, 1)
    found = {"first_expert": expert, "kind": rng.integers(0, 2, (prompts, length))}
    return values.astype(np.float32), found | {"task_index": np.arange(prompts) % 2}


def test_planted_clusters_are_neighbours_and_planted_noise_is_not():
    values, found = planted(20, 25, np.random.default_rng(0))
    variables = _measures(values, principal(values, 2)[0], found, (20, 25), 0)
    same, null, high = (variables[f"same{end}"][1] for end in ("", "_null", "_null_high"))
    assert (same[:, 0] == 1).all() and (high[:, 0] < 0.56).all(), "experts, on the map and in the full space"
    np.testing.assert_allclose(null, 0.5, atol=0.03)
    assert (abs(same[:, 1:] - 0.5) < 0.06).all(), "tasks and kinds"
    assert variables["trustworthiness_null"][1] == pytest.approx(0.5, abs=0.05)
    assert variables["trustworthiness"][1] > 0.55


def test_neighbours_are_sought_in_other_sequences_only():
    rng = np.random.default_rng(2)
    task = np.arange(6) % 3
    values = (rng.normal(size=(6, 1, 4)) * 50 + rng.normal(size=(6, 8, 4))).reshape(48, 4)  # a cluster a sequence
    found = {"first_expert": np.zeros((6, 8)), "kind": rng.integers(0, 3, (6, 8)), "task_index": task}
    seen = _measures(values, values[:, :2], found, (6, 8), 0)["same"][1]
    for row, space in enumerate((values[:, :2], values)):
        kinds, tasks = [], []
        for i in range(48):
            others = sorted(
                (j for j in range(48) if j // 8 != i // 8), key=lambda j: ((space[i] - space[j]) ** 2).sum()
            )
            kinds += [found["kind"].flat[i] == found["kind"].flat[j] for j in others[:15]]
            tasks += [task[i // 8] == task[j // 8] for j in others[:15]]
        np.testing.assert_allclose(seen[row], [1, np.mean(tasks), np.mean(kinds)])


def test_umap_keeps_planted_clusters_apart_and_repeats():
    values, found = planted(10, 12, np.random.default_rng(0))
    first = umap(values, 10, 0.1, 0)
    expert = found["first_expert"].ravel()
    middles = np.stack([first[expert == each].mean(0) for each in (0, 1)])
    nearer = ((first[:, None] - middles) ** 2).sum(-1).argmin(1)
    assert (nearer == expert).all()
    np.testing.assert_array_equal(umap(values, 10, 0.1, 0), first)
    assert first.dtype == np.float32 and first.shape == (120, 2)


def test_umap_of_a_model_says_what_it_worked_on_and_can_be_stopped_midway(traced):
    model = traced("gpt2")
    heard = []

    def report(what: str, done: int, total: int) -> bool:
        heard.append((what, done, total))
        return not what.startswith("UMAP")

    with pytest.raises(Cancelled, match="before UMAP had placed"), reporting(report):
        embedding(model, TASK, method="umap", n_neighbors=5, **SMALL)
    assert heard[-1] == ("UMAP of 44 tokens", 0, 500)  # epochs
    ds = embedding(model, TASK, method="umap", n_neighbors=5, **SMALL)
    assert ds.attrs["umap_input"] == "all 32 numbers of a token" and "variance_x" not in ds.attrs
    assert ds["trustworthiness"] > ds["trustworthiness_null"] + 0.2
    assert INPUT > 32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": 2}, "layer is 2; for space=residual this model has 0 to 1"),
        ({"layer": -3}, "layer is -3"),
        ({"length": 2}, "length is 2; this model takes 3 to 128"),
        ({"sequences": 1}, "sequences is 1; .*take 2 or more"),
        ({"method": "umap", "n_neighbors": 44}, "n_neighbors is 44 .*use 2 to 43"),
        ({"method": "umap", "min_dist": 2.0}, "min_dist 2.0"),
    ],
)
def test_what_cannot_be_mapped_is_said(traced, given, message):
    with pytest.raises(AnalysisError, match=message):
        embedding(traced("gpt2"), TASK, **SMALL | given)


def test_a_dense_model_has_no_router_space(traced):
    with pytest.raises(ModelError, match=r"routing of .* cannot be read"):
        embedding(traced("gpt2"), TASK, space="router", **SMALL)
