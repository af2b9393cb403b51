"""Two checkpoints compared: planted changes are found, noise is not, and every number has a second way to it."""

import copy
import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import norm
from scipy.stats import t as student

from workbench import store
from workbench.analyses import ANALYSES, STATES, AnalysisError, compare, top_changes
from workbench.analyses._noise import by_errors, by_signs, error_of, inflation, pseudo_values
from workbench.models.load import load, read_module, wrap
from workbench.schema import ATTRS, check
from workbench.tasks import make_task
from workbench.tuning import tune

SETTINGS = {
    "head_patching": {"draws": 20},
    "edge_attribution": {"steps": 2, "exact": 0},
    "sink_scores": {"length": 12, "sequences": 8},
    "routing": {"length": 12, "sequences": 8, "occurrences": 1},
    "gradient_alignment": {"tasks": "ioi", "batches": 4},
    "path_patching": {"stages": "logits@END", "draws": 20},
}
UNPAIRED = ("edge_attribution", "gradient_alignment", "head_patching", "path_patching")  # untrained, a gap is near 0


def result(name: str, model, seed: int = 0, n: int = 16) -> xr.Dataset:
    return ANALYSES[name].run(model, make_task("subject_verb", n=n, seed=seed), **SETTINGS[name])


def made(
    before: np.ndarray, after: np.ndarray, half: float | None = 0.1, task: str = "one", **variables: np.ndarray
) -> list[xr.Dataset]:
    """Results by hand of values [layer, head], with intervals of a half width."""
    found = []
    for place, values in enumerate((before, after)):
        parts = {"effect": values, **{name: both[place] for name, both in variables.items()}}
        if half is not None:
            parts |= {"effect_low": values - half, "effect_high": values + half}
        said = {"long_name": "effect", "units": "1", "signed": 1}
        ds = xr.Dataset({key: (("layer", "head"), value, said) for key, value in parts.items()})
        ds = ds.assign_coords(layer=np.arange(values.shape[0]), head=np.arange(values.shape[1]))
        ds.attrs = {name: "made up" for name in ATTRS} | {"primary": "effect", "params": "{}", "task_hash": task}
        found.append(check(ds.assign_attrs(model_hash=str(place))))
    return found


# The noise of a difference.


def test_signs_agree_with_all_of_them():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 5)) + np.array([0, 0, 0, 0.6, 1.5])
    noise = by_signs(values, draws=40_000, seed=1)
    t = abs(values.mean(0)) / noise.error
    np.testing.assert_allclose(noise.error, [np.std(column, ddof=1) / 8**0.5 for column in values.T])
    greatest = []
    for signs in itertools.product((-1, 1), repeat=8):
        flipped = values * np.array(signs)[:, None]
        greatest.append(max(abs(flipped.mean(0)) / (flipped.std(0, ddof=1) / 8**0.5)))
    exact = [(np.array(greatest) >= seen - 1e-9).mean() for seen in t]
    np.testing.assert_allclose(noise.p(values.mean(0)), exact, atol=0.01)
    beyond = (np.array(greatest) > noise.critical + 1e-9).mean()
    assert beyond <= 0.05 < (np.array(greatest) >= noise.critical - 1e-9).mean() + 0.01


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_of_comparisons_in_which_nothing_changed_one_in_twenty_shows_a_change(shared):
    rng, wrong, count = np.random.default_rng(3), 0, 400
    for trial in range(count):
        values = rng.standard_t(3, (12, 30)) * (1 - shared) + rng.standard_t(3, (12, 1)) * shared
        values *= np.geomspace(0.01, 10, 30)  # cells of very different size
        noise = by_signs(values, draws=199, seed=trial)
        wrong += bool((noise.p(values.mean(0)) <= 0.05).any())
    assert wrong / count <= 0.05 + 3 * (0.05 * 0.95 / count) ** 0.5
    assert wrong / count >= 0.05 - 3 * (0.05 * 0.95 / count) ** 0.5  # and the band is no wider than need be


@pytest.mark.parametrize("freedom", [7, np.inf])
@pytest.mark.parametrize("count", [1, 50])
def test_errors_are_tested_at_the_level_of_sidak(count, freedom):
    noise = by_errors(np.array([0.5, 0.5]), count, freedom)
    law = student(freedom) if np.isfinite(freedom) else norm
    each = 1 - 0.95 ** (1 / count)
    assert noise.critical == pytest.approx(law.ppf(1 - each / 2), rel=1e-6)
    t = np.array([0.0, 2.4])
    np.testing.assert_allclose(noise.p(t / 2), 1 - (1 - 2 * law.sf(t)) ** count, rtol=1e-6)


def test_errors_are_read_from_the_wider_side_of_an_interval():
    assert error_of(np.array(0.2), np.array(0.9), np.array(1.0), np.inf) == pytest.approx(0.7 / norm.ppf(0.975))
    assert error_of(np.array(0.0), np.array(1.0), np.array(2.0), 3) == pytest.approx(1 / student(3).ppf(0.975))


def test_pseudo_values_hold_a_ratio_and_its_noise():
    rng = np.random.default_rng(0)
    gap = 3 + rng.normal(size=60)
    gain = gap[:, None] * np.array([0.2, 0.8]) + rng.normal(size=(60, 2)) * 0.5
    found = pseudo_values(gain, gap)
    np.testing.assert_allclose(found.mean(0), gain.mean(0) / gap.mean())
    without = np.array([np.delete(gain, i, 0).mean(0) / np.delete(gap, i).mean() for i in range(60)])
    jackknife = np.sqrt(59 / 60 * ((without - without.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(found.std(0, ddof=1) / 60**0.5, jackknife, rtol=0.03)


def test_a_retest_widens_what_is_too_narrow_and_nothing_else():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 20_000))
    claimed = np.ones(20_000)
    assert inflation(first, second, (claimed, claimed)) == pytest.approx(1, abs=0.02)
    assert inflation(3 * first, 3 * second, (claimed, claimed)) == pytest.approx(3, abs=0.05)
    assert inflation(first / 9, second / 9, (claimed, claimed)) == 1
    assert inflation(first, second, (claimed * 0, claimed * 0)) == 1


# States.


def test_states_follow_their_definition():
    # Of eight cells two count as present (top 0.25): those of at least 0.8.
    before = np.array([[0.9, 0.8, 0.1, 0.0], [0.0, -0.1, 0.2, 0.7]])
    after = np.array([[-0.9, 0.1, 0.1, 0.9], [-0.8, -0.1, 0.2, 0.81]])
    ds = compare(*made(before, after), top=0.25)
    band = norm.ppf((1 + 0.95 ** (1 / 8)) / 2) * 0.1 / norm.ppf(0.975) * 2**0.5
    np.testing.assert_allclose(ds["band"], band, rtol=1e-6)
    states = [[STATES[state] for state in row] for row in ds["state"].values.tolist()]
    assert states == [["flipped", "lost", "absent", "gained"], ["gained", "absent", "absent", "absent"]]
    assert {name: ds.attrs[name] for name in STATES[1:]} == {"kept": 0, "lost": 1, "gained": 2, "flipped": 1}
    assert (ds.attrs["cells"], ds.attrs["changed"], ds.attrs["threshold"]) == (8, 4, 0.8)
    assert ds.attrs["jaccard"] == 1 / 5  # present before: 2; after: 4; in both: one, turned round
    np.testing.assert_allclose(ds["difference"], after - before)
    np.testing.assert_allclose(ds["difference_high"] - ds["difference"], ds["band"])


def test_within_the_band_a_cell_is_what_it_was():
    before = np.array([[0.80, 0.79, 0.1, 0.1]])
    ds = compare(*made(before, before[:, [1, 0, 2, 3]]), top=0.25)
    assert ds["state"].values.tolist() == [[1, 0, 0, 0]] and ds.attrs["changed"] == 0
    assert ds.attrs["jaccard"] == 0  # the plain sets differ, the states say that it is noise


def test_presence_is_a_distance_from_the_null():
    load, null = np.array([[0.9, 0.5, 0.5, 0.1]]), np.full((1, 4), 0.5)
    (before, after) = made(load, load[:, ::-1], half=0.01, effect_null=(null, null))
    ds = compare(before, after, top=0.5)
    assert [STATES[state] for state in ds["state"].values[0]] == ["flipped", "absent", "absent", "flipped"]


def test_changes_are_listed_by_size_those_within_the_band_last():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 4, 8))
    low, high = made(before, after, half=0.3)
    ds = compare(low, high)
    table = top_changes(ds, 32)
    size, outside = abs(after - before).ravel(), table["changed"].values
    assert outside.any() and not outside.all() and (np.diff(outside.astype(int)) <= 0).all()
    order = sorted(range(32), key=lambda cell: (size[cell] <= ds["band"].values.flat[cell], -size[cell]))
    assert table["name"].tolist() == [f"L{cell // 8}H{cell % 8}" for cell in order]
    np.testing.assert_allclose(table["difference"].abs(), size[order])
    assert (table["p"].values <= 0.05).tolist() == outside.tolist()
    assert top_changes(ds, 3)["name"].tolist() == table["name"].tolist()[:3]


# Real results.


@pytest.mark.parametrize("name", SETTINGS)
def test_a_result_compared_with_itself_has_not_changed(name, traced, tmp_path):
    ds = result(name, traced("mixtral" if name == "routing" else "llama"))
    same = compare(ds, ds)
    assert same.attrs["changed"] == 0 and not same["difference"].values.any() and (same["p"] == 1).all()
    assert set(np.unique(same["state"])) <= {0, 1} and same.attrs["jaccard"] == 1
    assert same.attrs["noise"].startswith("both" if name in UNPAIRED else "paired by prompt")
    again = store.load(store.save(same, tmp_path / "same.nc"))
    xr.testing.assert_equal(again, same)
    assert again.attrs == same.attrs


@pytest.mark.parametrize("name", ["head_patching", "edge_attribution"])
def test_a_fine_tune_that_learns_nothing_changes_nothing(name, saved):
    given = {"model": str(saved("llama")), "tasks": ["subject_verb", "ioi"], "steps": 2, "batch": 4, "held": 8}
    run = tune({**given, "examples": 16, "learning_rate": 0.0, "device": "cpu"})
    before, after = (load(reference, device="cpu", merge=True) for reference in (str(saved("llama")), run.reference))
    ds = compare(result(name, before), result(name, after))
    assert ds.attrs["changed"] == 0 and {ds.attrs[state] for state in STATES[2:]} == {0}


def test_a_change_of_one_head_is_on_top(zoo_model):
    module, _, _ = read_module("zoo/tasks")
    cut = copy.deepcopy(module)
    width = module.config.hidden_size // module.config.num_attention_heads
    with torch.no_grad():
        cut.transformer.h[2].attn.c_proj.weight[:width] = 0  # the output of L2H0
    changed, task = wrap(cut, zoo_model.tokenizer), make_task("ioi", n=32)
    heads = [ANALYSES["head_patching"].run(model, task) for model in (zoo_model, changed)]
    table = top_changes(compare(*heads), 1)
    assert (table["name"][0], table["state"][0], table["changed"][0]) == ("L2H0", "lost", True)
    assert table["after"][0] == pytest.approx(0, abs=1e-6) and table["p"][0] < 0.001
    edges = [ANALYSES["edge_attribution"].run(model, task, exact=0) for model in (zoo_model, changed)]
    ds = compare(*edges)
    table = top_changes(ds, 10)
    assert "L2H0" in table["name"][0] and table["state"][0] == "lost"
    lost = [name for name, state in zip(table["name"], table["state"], strict=True) if state == "lost"]
    assert len(lost) >= 3 and all("L2H0" in name for name in lost)
    assert ds.attrs["cells"] == int(edges[0]["valid"].sum()) and (ds["rank"].values[edges[0]["valid"] == 0] == -1).all()


def test_what_two_results_share_is_counted_by_name(traced, saved):
    first = load(saved("gpt2"), device="cpu")
    before = result("edge_attribution", first)
    other = copy.deepcopy(first.plain)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_proj.weight *= -2
    after = result("edge_attribution", wrap(other, first.tokenizer))
    ds = compare(before, after, top=0.1)
    present = []
    for side in (before, after):
        score = side["score"].where(side["valid"] > 0, 0)
        there = np.argwhere(abs(score).values >= ds.attrs["threshold"])
        present.append({(str(side["component"].values[w]), str(side["receiver"].values[r])) for r, w in there})
    assert ds.attrs["jaccard"] == pytest.approx(len(present[0] & present[1]) / len(present[0] | present[1]))
    nodes = [{n for w, r in edges for n in (w, r.split(".")[0])} for edges in present]
    assert ds.attrs["jaccard_nodes"] == pytest.approx(len(nodes[0] & nodes[1]) / len(nodes[0] | nodes[1]))
    assert sum(ds.attrs[name] for name in STATES[1:]) == int((ds["state"].values[ds["rank"].values >= 0] > 0).sum())


def test_results_that_keep_their_prompts_are_paired(zoo_model):
    task = make_task("ioi", n=48)
    earlier = load("zoo/tasks@2000", device="cpu")
    before, after = (ANALYSES["head_patching"].run(model, task) for model in (earlier, zoo_model))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(3000):
        rows = rng.integers(0, 48, 48)
        sides = []
        for ds in (before, after):
            clean, corrupted = (ds[f"metric_{name}"].values[rows].mean() for name in ("clean", "corrupted"))
            sides.append((ds["metric"].values[rows].mean(0) - corrupted) / (clean - corrupted))
        drawn.append(sides[1] - sides[0])
    ds = compare(before, after)
    error = np.std(drawn, 0)
    implied = ds["band"].values / error  # the same number of standard errors for every head
    assert implied.std() / implied.mean() < 0.1 and 2 < implied.mean() < 5
    paths = [ANALYSES["path_patching"].run(model, task, stages="logits@END") for model in (earlier, zoo_model)]
    assert {compare(*pair).attrs["noise"][:16] for pair in ((before, after), paths)} == {"paired by prompt"}
    # On a gap that may be 0 a share is not linear: the intervals are taken instead.
    unsure = before.assign(metric_corrupted=before["metric_clean"] - np.linspace(-3, 3.1, 48))
    gain = before["effect"].mean() * 0 + before["metric"] - before["metric_corrupted"]
    unsure = unsure.assign(metric=unsure["metric_corrupted"] + gain)
    gap = (unsure["metric_clean"] - unsure["metric_corrupted"]).mean()
    unsure["effect"].values = (gain.mean("prompt") / gap).values
    assert compare(unsure, unsure).attrs["noise"].startswith("both intervals")


def test_gradients_of_a_pair_of_tasks_are_listed_once(traced):
    ds = result("gradient_alignment", traced("llama"))
    table = top_changes(compare(ds, ds), 10**6)
    assert len(table) == ds.sizes["module"] and table["name"].str.endswith(" x ioi (s2_to_io)").all()


def test_a_retest_is_reported_and_only_widens(traced):
    model = traced("llama")
    first, again = (result("head_patching", model, seed) for seed in (0, 1))
    plain, tested = compare(first, first), compare(first, first, retest=(again, again))
    assert tested.attrs["widened"] == 1 and (tested["band"] >= plain["band"]).all()
    assert tested.attrs["retest_correlation"] == 1 and not tested["difference_retest"].values.any()
    top = max(1, round(0.125 * first["effect"].size))
    circuits = [set(np.argsort(-abs(ds["effect"].values), axis=None)[:top].tolist()) for ds in (first, again)]
    alike = len(circuits[0] & circuits[1]) / len(circuits[0] | circuits[1])
    assert tested.attrs["jaccard_retest"] == pytest.approx(alike)


def test_without_prompts_or_intervals_the_retest_is_the_noise():
    planted, wrong = np.zeros((10, 20)), 0
    planted[3, 4] = 2
    for seed in range(60):
        rng = np.random.default_rng(seed)
        before, noise = rng.normal(size=(10, 20)), rng.normal(size=(4, 10, 20)) * 0.1
        firsts = made(before + noise[0], before + noise[1] + planted, half=None)
        one, other = made(before + noise[2], before + noise[3] + planted, half=None, task="two")
        ds = compare(*firsts, retest=(one, other))
        expected = norm.ppf((1 + 0.95 ** (1 / 200)) / 2) * 0.1 * 2**0.5
        np.testing.assert_allclose(ds["band"], expected, rtol=0.2)
        assert top_changes(ds, 1)["name"][0] == "L3H4"
        np.testing.assert_allclose(ds["difference_retest"], other["effect"] - one["effect"])
        wrong += ds.attrs["changed"] > 1
    assert wrong / 60 <= 0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5
    with pytest.raises(AnalysisError, match="without prompts or intervals"):
        compare(*firsts)


def test_rounding_is_no_change():
    before = np.array([[1.0, 0.5, 0.2, 0.1]])
    ds = compare(*made(before, before + 9e-5, half=0.0))
    assert ds.attrs["changed"] == 0 and (ds["p"] == 1).all()
    assert compare(*made(before, before + 2e-4, half=0.0)).attrs["changed"] == 4


def test_results_that_do_not_belong_together_are_refused(traced):
    model = traced("llama")
    heads = result("head_patching", model)
    with pytest.raises(AnalysisError, match="differ in analysis"):
        compare(heads, result("path_patching", model))
    with pytest.raises(AnalysisError, match="differ in task_hash"):
        compare(heads, result("head_patching", model, seed=1))
    with pytest.raises(AnalysisError, match="differ in positions"):
        compare(heads, ANALYSES["head_patching"].run(model, make_task("subject_verb", n=16), positions="named"))
    with pytest.raises(AnalysisError, match="differ in layer"):
        compare(heads, heads.isel(layer=[0]))
    with pytest.raises(AnalysisError, match=r"no 'nothing' .* it has: effect, effect_low"):
        compare(heads, heads, variable="nothing")
    with pytest.raises(AnalysisError, match="'metric' cannot be compared"):
        compare(heads, heads, variable="metric")
    with pytest.raises(AnalysisError, match="same prompts, so it shows no noise"):
        compare(heads, heads, retest=(heads, heads))
    with pytest.raises(AnalysisError, match="retest differs in model_hash"):
        compare(heads, heads, retest=(result("head_patching", traced("gpt2"), seed=1),) * 2)
    with pytest.raises(AnalysisError, match="top is 0"):
        compare(heads, heads, top=0)
    few = ANALYSES["sink_scores"].run(model, make_task("subject_verb", n=8), length=8, sequences=5)
    with pytest.raises(AnalysisError, match="5 prompts show no noise"):
        compare(few, few)
