"""Results on disk: netCDF files keyed by what they were computed from, written whole or not at all."""

import hashlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.disk import home, write_whole
from workbench.registry import WorkbenchError
from workbench.schema import SchemaError, check

# Load options that decide the numbers.
NUMERIC = ("dtype", "fold", "bos", "merge", "trust_remote_code", "route", "tasks")


class StoreError(WorkbenchError):
    """A result that could not be written or read."""


def key(analysis: str, params: Mapping[str, Any], model_hash: str, options: Mapping[str, Any], task_hash: str) -> str:
    """Sixteen hexadecimal digits of everything a result depends on, the package's version included."""
    decisive = {name: options.get(name) for name in NUMERIC}
    parts = [analysis, dict(params), model_hash, decisive, task_hash, importlib.metadata.version("reuse-workbench")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def path_of(analysis: str, key: str) -> Path:
    """The file a result is kept in."""
    return home() / "results" / f"{analysis}-{key}.nc"


def find(analysis: str, key: str) -> xr.Dataset | None:
    """A kept result, or None; a file that cannot be read is set aside with a warning."""
    path = path_of(analysis, key)
    if not path.is_file():
        return None
    try:
        return load(path)
    except (StoreError, SchemaError) as error:
        path.replace(path.with_suffix(".damaged"))
        warnings.warn(f"{error} It was set aside and will be computed again.", stacklevel=2)
        return None


def load(path: str | os.PathLike) -> xr.Dataset:
    """A result from a netCDF file, in memory.

    Raises:
        StoreError: when the file cannot be read as netCDF.
        SchemaError: when it holds no workbench result.
    """
    try:
        ds = xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"'{path}' cannot be read as a result ({error}).") from error
    ds.attrs = {name: value.item() if isinstance(value, np.generic) else value for name, value in ds.attrs.items()}
    return check(ds)


def save(ds: xr.Dataset, path: str | os.PathLike) -> Path:
    """Write a result to a netCDF file; after an error the file is as it was before.

    Raises:
        StoreError: when it cannot be written, for want of space or permission.
    """
    path = Path(path)
    check(ds)
    try:
        write_whole(path, _content(ds))
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(
            f"The result could not be written to '{path}' ({reason}); free some space, or set WORKBENCH_HOME "
            "to a folder you can write to."
        ) from error
    return path


def _content(ds: xr.Dataset) -> bytes:
    """The bytes of a netCDF file. HDF5 crashes the process when a disk is full, so Python does the writing."""
    import dask.config

    with dask.config.set(scheduler="synchronous"):  # else xarray asks a running cluster for a lock, and gets none
        return bytes(ds.to_netcdf(engine="h5netcdf"))
