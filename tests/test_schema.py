"""The dataset contract: each violation is named, and what belongs together joins."""

import json

import numpy as np
import pytest
import xarray as xr

from workbench.schema import ATTRS, SchemaError, check, concat, provenance, versions


def good(shift: float = 0.0, **attrs) -> xr.Dataset:
    """A result that keeps the contract."""
    say = {"long_name": "effect", "units": "share"}
    ds = xr.Dataset(
        {
            "effect": (("layer", "head"), np.arange(6.0).reshape(2, 3) + shift, say),
            "metric": (("prompt", "layer"), np.ones((4, 2)), {"long_name": "metric"}),
        },
        coords={"layer": [0, 1], "head": [0, 1, 2], "prompt": range(4), "text": ("prompt", list("abca"))},
    )
    ds.attrs = {name: "given" for name in ATTRS} | {"primary": "effect", "analysis": "patching"} | attrs
    return ds


def test_a_good_result_passes_as_it_is():
    ds = good()
    assert check(ds) is ds


def unknown_dim(ds):
    return ds.rename(head="kopf")


def no_coordinate(ds):
    return ds.drop_vars("head")


def repeated_labels(ds):
    return ds.assign_coords(head=["a", "a", "b"])


def real_labels(ds):
    return ds.assign_coords(head=[0.1, 0.2, 0.3])


def not_finite(ds):
    return ds.assign(effect=ds["effect"].where(ds["effect"] != 3).assign_attrs(ds["effect"].attrs))


def without_long_name(ds):
    ds["effect"].attrs.pop("long_name")
    return ds


def attribute_missing(ds):
    del ds.attrs["trust"]
    return ds


def attribute_none(ds):
    return ds.assign_attrs(seed=None)


def attribute_mapping(ds):
    return ds.assign_attrs(params={"a": 1})


def wrong_primary(ds):
    return ds.assign_attrs(primary="nothing")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (unknown_dim, "'kopf'"),
        (no_coordinate, "'head' has no coordinate"),
        (repeated_labels, "coordinate of 'head'"),
        (real_labels, "coordinate of 'head'"),
        (not_finite, "'effect' holds values that are not finite"),
        (without_long_name, "'effect' has no 'long_name'"),
        (attribute_missing, "lacks the attributes trust"),
        (attribute_none, "'seed' is a NoneType"),
        (attribute_mapping, "'params' is a dict"),
        (wrong_primary, "'nothing' is not in the dataset"),
    ],
)
def test_each_violation_is_named(spoil, named):
    with pytest.raises(SchemaError, match=named):
        check(spoil(good()))


def test_provenance_is_flat_and_says_the_versions():
    attrs = provenance(params={"b": 1, "a": [2]}, task="ioi", seeds=(1, 2), n=3)
    assert json.loads(attrs["params"]) == {"a": [2], "b": 1} and json.loads(attrs["seeds"]) == [1, 2]
    assert attrs["n"] == 3 and attrs["created_at"].endswith("+00:00")
    assert json.loads(attrs["versions"]) == versions()
    assert {"python", "torch", "reuse-workbench"} <= set(versions())


@pytest.mark.parametrize("dim", ["checkpoint", "task", "method", "seed"])
def test_results_join_along_a_new_dimension(dim):
    parts = {"before": good(0, checkpoint=0), "after": good(10, checkpoint=500)}
    joined = check(concat(parts, dim))
    assert joined["effect"].dims == (dim, "layer", "head") and joined[dim].values.tolist() == ["before", "after"]
    for label, part in parts.items():
        np.testing.assert_array_equal(joined["effect"].sel({dim: label}), part["effect"])
    assert joined["effect"].attrs == good()["effect"].attrs
    assert json.loads(joined.attrs["checkpoint"]) == [0, 500] and joined.attrs["analysis"] == "patching"


def test_labels_that_differ_stay_with_the_result_they_label():
    one, other = (good().assign_coords(named=("head", names)) for names in (["a", "b", "c"], ["a", "x", "c"]))
    joined = concat({"one": one, "other": other}, "task")
    assert joined["named"].sel(task="other").values.tolist() == ["a", "x", "c"]
    assert joined["named"].sel(task="one").values.tolist() == ["a", "b", "c"]
    same = concat({"one": one, "other": one.copy()}, "task")
    assert same["named"].dims == ("head",)


def test_prompts_of_different_runs_are_not_joined():
    assert "prompt" not in concat({"a": good(), "b": good().isel(prompt=slice(2))}).dims


def test_what_does_not_fit_together_is_said():
    with pytest.raises(SchemaError, match="different shapes"):
        concat({"a": good(), "b": good().isel(head=slice(2))})
    with pytest.raises(SchemaError, match=r"different analyses.*patching, sinks"):
        concat({"a": good(), "b": good(analysis="sinks")})
    with pytest.raises(SchemaError, match="Cannot join along 'colour'"):
        concat({"a": good(), "b": good()}, "colour")
    with pytest.raises(SchemaError):
        concat({})
