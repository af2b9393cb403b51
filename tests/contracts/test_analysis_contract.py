"""What every registered analysis promises, on an untrained GPT-2 and an untrained grouped-query Llama, or MoEs."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr

from workbench import store
from workbench.analyses import ANALYSES, AnalysisError
from workbench.parameters import ParameterError
from workbench.progress import Cancelled, reporting
from workbench.schema import check
from workbench.tasks import make_task

SMALL = {
    "ablation": {"sets": "one=L0H1; two=L0H0,L1H3", "draws": 2},
    "dormant_heads": {"length": 12, "sequences": 4, "draws": 20, "batch": 2},
    "embedding": {"length": 12, "sequences": 4, "batch": 1},
    "edge_attribution": {"steps": 2, "exact": 12, "batch": 4},
    "expert_ablation": {"length": 8, "sequences": 2, "draws": 20},
    "expert_drift": {"steps": 4, "examples": 24, "batch": 8},
    "expert_similarity": {"length": 8, "sequences": 2, "tokens": 8},
    "expert_truncation": {"draws": 5},
    "faithfulness": {"steps": 1, "draws": 1, "batch": 4},
    "flips": {"batch": 4},
    "gradient_alignment": {"tasks": "ioi", "batches": 4},
    "head_patching": {"draws": 20},
    "head_roles": {"batch": 4},
    "massive_activations": {"length": 12, "sequences": 4, "ratio": 3.0, "threshold": 0.0, "draws": 1, "batch": 1},
    "mean_attention": {"length": 6, "sequences": 6, "batch": 2},
    "path_patching": {"stages": "logits@END; q@END; v@subject", "top": 0.2, "draws": 20, "batch": 4},
    "repair": {"heads": "L0H1,L1H2", "weights": "subject=1", "draws": 3},
    "route_surgery": {"edits": "L0E1=mute; L1E2=force@END; L1E0=0.5@1", "steps": 2, "draws": 20},
    "routing": {"length": 8, "sequences": 4, "shown": 2, "batch": 1, "occurrences": 1},
    "secondary_sinks": {"length": 12, "sequences": 4, "batch": 2, "cosine": 0.35},
    "sink_ablation": {"length": 12, "sequences": 4, "batch": 2, "cosine": 0.35},
    "sink_aware_patching": {"draws": 20},
    "sink_directions": {"length": 12, "sequences": 6, "batch": 1, "cosine": 0.35, "kind": "any"},
    "sink_scores": {"length": 12, "sequences": 4, "batch": 1},
    "task_saliency": {"tasks": "ioi", "batch": 2, "draws": 20},
}
SHOWN_ON = {"head_roles": "ioi"}  # where subject_verb does not show all that it can
ROUTED = (
    "expert_ablation",
    "expert_drift",
    "expert_similarity",
    "expert_truncation",
    "route_surgery",
    "routing",
    "routing_circuit",
)  # of a mixture of experts
SPARSE = {"gpt2": "mixtral", "llama": "olmoe"}  # what those are shown on instead
TOKENS = np.random.default_rng(2).integers(3, 400, (2, 9))
every_analysis = pytest.mark.parametrize("name", ANALYSES)
every_model = pytest.mark.parametrize("family", ["gpt2", "llama"])
PASSING = ("created_at", "seconds")  # what differs between two equal runs


def go(name: str, model, n: int = 8) -> xr.Dataset:
    return ANALYSES[name].run(model, make_task(SHOWN_ON.get(name, "subject_verb"), n=n), **SMALL.get(name, {}))


def suited(name: str, family: str) -> str:
    """The family, or the mixture of experts that stands for it."""
    return SPARSE[family] if name in ROUTED else family


def settled(ds: xr.Dataset) -> xr.Dataset:
    """The dataset without what differs between two equal runs."""
    return ds.assign_attrs(dict.fromkeys(PASSING, ""))


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for name, value in model.bridge.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def hooks_left(model) -> list[str]:
    return [name for name, point in model.bridge.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]


@every_analysis
@every_model
def test_a_result_keeps_the_schema_and_repeats(name, family, traced):
    model = traced(suited(name, family))
    ds = go(name, model)
    assert check(ds) is ds and ds.attrs["analysis"] == name
    assert all(np.isfinite(v.values).all() for v in ds.data_vars.values() if v.dtype.kind == "f")
    xr.testing.assert_identical(settled(go(name, model)), settled(ds))


@every_analysis
@every_model
def test_a_result_survives_netcdf(name, family, traced, tmp_path):
    ds = go(name, traced(suited(name, family)))
    again = store.load(store.save(ds, tmp_path / "result.nc"))
    xr.testing.assert_equal(again, ds)
    assert again.attrs == ds.attrs
    for variable in ds.variables:
        assert again[variable].attrs == ds[variable].attrs
        assert again[variable].dtype.kind == ds[variable].dtype.kind


@every_analysis
@every_model
def test_the_model_is_left_as_it_was(name, family, traced):
    model = traced(suited(name, family))
    weights, logits = fingerprint(model), model.logits(TOKENS)
    go(name, model)
    assert fingerprint(model) == weights and not hooks_left(model)
    assert (model.logits(TOKENS) == logits).all()


def stops(name: str, model) -> Iterator[xr.Dataset | None]:
    """What the analysis gives when it is stopped at its first, second, ... report; None where it raised Cancelled."""
    for last in range(100):
        calls = []

        def report(what: str, done: int, total: int, calls=calls, last=last) -> bool:
            calls.append((what, done, total))
            return len(calls) <= last

        with reporting(report):
            try:
                yield go(name, model)
            except Cancelled:
                yield None
        for what in dict.fromkeys(what for what, *_ in calls):
            counted = [done for phase, done, _ in calls if phase == what]
            assert counted == list(range(len(counted)))
        if len(calls) <= last and calls[-1][1] == calls[-1][2]:
            return


@every_analysis
def test_a_stop_between_batches_gives_what_was_done(name, traced):
    model = traced(suited(name, "gpt2"))
    full = go(name, model)
    parts = list(stops(name, model))
    assert parts[0] is None, "stopped before anything was done"
    assert len(parts) > 2 and not hooks_left(model)
    xr.testing.assert_identical(settled(parts[-1]), settled(full))
    found = [part for part in parts if part is not None]
    for part in found:
        check(part)
        assert all(part.sizes[dim] <= full.sizes[dim] for dim in part.dims)
    sizes = [sum(part.sizes.values()) for part in found]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@every_analysis
def test_parameters_are_checked_before_anything_runs(name):
    analysis = ANALYSES[name]
    with pytest.raises(ParameterError, match=f"no parameter 'nonsense'; it has: {', '.join(analysis.parameters)}"):
        analysis.complete({"nonsense": 1})
    assert analysis.complete({}) == {key: p.default for key, p in analysis.parameters.items()}
    for key, parameter in analysis.parameters.items():
        if parameter.kind is not str or parameter.choices:
            with pytest.raises(ParameterError, match=f"{key} is 'many'"):
                analysis.complete({key: "many"})
        if not parameter.choices:
            assert analysis.complete({key: str(parameter.default)})[key] == parameter.default  # as typed in a shell
        if parameter.kind is int:
            with pytest.raises(ParameterError, match="whole number"):
                analysis.complete({key: 2.5})


@every_analysis
@pytest.mark.parametrize("bad", [0, -1])
def test_counts_below_one_are_refused(name, bad, traced):
    counts = [key for key in ANALYSES[name].parameters if key in ("batch", "draws", "sequences")]
    for key in counts:
        given = {**SMALL.get(name, {}), key: bad}
        with pytest.raises(AnalysisError, match=rf"{key}.*{bad}"):
            ANALYSES[name].run(traced(suited(name, "gpt2")), make_task("subject_verb", n=8), **given)


@every_analysis
def test_every_head_variable_says_its_unit_and_every_analysis_its_claim(name, traced):
    ds = go(name, traced(suited(name, "gpt2")))
    assert ds.attrs["sign"] and ANALYSES[name].about.endswith(".")
    assert ds[ds.attrs["primary"]].attrs["units"]
