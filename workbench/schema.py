"""The dataset contract: which dimensions there are, what every result carries, and how two results become one."""

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from workbench.registry import WorkbenchError

DIMS = (
    *("task", "prompt", "pos", "query_pos", "key_pos", "layer", "head", "component", "receiver", "expert", "module"),
    *("checkpoint", "method", "seed", "step", "size", "edge", "measured"),
)
ATTRS = (
    *("analysis", "params", "model", "model_hash", "checkpoint", "task", "task_hash", "seed", "sign", "created_at"),
    *("versions", "seconds", "trust", "primary", "title"),
)
SIGN = "0 = corrupted run, 1 = clean run, not clipped; positive = restoring the clean value helps"
PACKAGES = ("reuse-workbench", "torch", "transformers", "transformer-lens", "peft", "numpy", "xarray")


class SchemaError(WorkbenchError):
    """A dataset that is not a workbench result, or two that cannot be put together."""


def check(ds: xr.Dataset) -> xr.Dataset:
    """The same dataset, once it is known to keep the contract.

    Every dimension is in `DIMS` and has an integer or unique-string coordinate; values are finite NumPy arrays with a
    `long_name`; attributes are flat and complete; `primary` names a variable.

    Raises:
        SchemaError: naming the dimension, variable or attribute at fault.
    """
    for dim in ds.dims:
        _check_dim(ds, str(dim))
    for name, variable in ds.data_vars.items():
        _check_variable(str(name), variable)
    missing = [name for name in ATTRS if name not in ds.attrs]
    if missing:
        raise SchemaError(f"The dataset lacks the attributes {', '.join(missing)}; make it with workbench.run.")
    for name, value in ds.attrs.items():
        if not isinstance(value, (str, int, float, np.integer, np.floating)):
            raise SchemaError(f"Attribute '{name}' is a {type(value).__name__}; write it as text or a number.")
    if ds.attrs["primary"] not in ds.data_vars:
        raise SchemaError(f"The primary variable '{ds.attrs['primary']}' is not in the dataset.")
    return ds


def _check_dim(ds: xr.Dataset, dim: str) -> None:
    if dim not in DIMS:
        raise SchemaError(f"Dimension '{dim}' is not in the vocabulary; use one of: {', '.join(DIMS)}.")
    if dim not in ds.coords:
        raise SchemaError(f"Dimension '{dim}' has no coordinate; give it integers or unique names.")
    labels = ds[dim].values
    if labels.dtype.kind not in "iuUTO" or len(set(labels.tolist())) != len(labels):
        raise SchemaError(f"The coordinate of '{dim}' must hold integers or unique names.")


def _check_variable(name: str, variable: xr.DataArray) -> None:
    if not isinstance(variable.data, np.ndarray):
        raise SchemaError(f"Variable '{name}' is not a NumPy array; move it to the CPU first.")
    if variable.dtype.kind == "f" and not np.isfinite(variable.values).all():
        raise SchemaError(f"Variable '{name}' holds values that are not finite.")
    if "long_name" not in variable.attrs:
        raise SchemaError(f"Variable '{name}' has no 'long_name'.")


def provenance(**known: Any) -> dict[str, Any]:
    """Flat attributes of a result: what is given (mappings become JSON), the time now, and the versions in use."""
    flat = {k: json.dumps(v, sort_keys=True) if isinstance(v, (Mapping, list, tuple)) else v for k, v in known.items()}
    flat["created_at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    flat["versions"] = json.dumps(versions())
    return flat


def versions() -> dict[str, str]:
    """The Python version and those of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found


def concat(results: Mapping[Any, xr.Dataset], dim: str = "checkpoint") -> xr.Dataset:
    """One dataset with a new dimension `dim`, labelled by the keys; attributes that differ become a JSON list.

    Raises:
        SchemaError: when the results come from different analyses or differ in the other dimensions.
    """
    if dim not in DIMS:
        raise SchemaError(f"Cannot join along '{dim}'; use one of: {', '.join(DIMS)}.")
    parts = list(results.values())
    if len({part.attrs["analysis"] for part in parts}) != 1:
        found = ", ".join(sorted({str(part.attrs["analysis"]) for part in parts}))
        raise SchemaError(f"Results of different analyses cannot be joined: {found}.")
    shared = [name for name in parts[0].data_vars if "prompt" not in parts[0][name].dims]
    try:
        kept = [part[shared].drop_dims("prompt", errors="ignore") for part in parts]
        joined = xr.concat(kept, dim=dim, join="exact", combine_attrs="override", coords="different", compat="equals")
    except ValueError as error:
        raise SchemaError(f"The results have different shapes: {error}") from None
    joined = joined.assign_coords({dim: list(results)})
    for name in dict.fromkeys(name for part in parts for name in part.attrs):
        values = [part.attrs.get(name, "") for part in parts]
        joined.attrs[name] = values[0] if len(set(values)) == 1 else json.dumps(values)
    joined.attrs["title"] = f"{parts[0].attrs['analysis']}: {', '.join(map(str, results))}"
    return joined
