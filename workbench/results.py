"""Results of analyses, asked for as plain data: from the store, or computed in this process and kept."""

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench import store
from workbench.analyses import ANALYSES
from workbench.jobs import EngineError
from workbench.models.reference import ModelError, find
from workbench.tasks import Task, make_task

if TYPE_CHECKING:
    from workbench.models.model import Model


def as_task(task: "Task | str | Mapping[str, Any]") -> Task:
    """A task from itself, its name, or its spec."""
    if isinstance(task, Task):
        return task
    return make_task(task) if isinstance(task, str) else Task.from_spec(task)


def specify(analysis: str, model: "Model | str | Mapping[str, Any]", task: Any, params: Mapping[str, Any]) -> dict:
    """The plain JSON a run is asked for with; parameters completed and checked, nothing loaded."""
    options = {"reference": model} if isinstance(model, str) else model if isinstance(model, Mapping) else model.spec
    return {
        "analysis": analysis,
        "model": dict(options),
        "task": as_task(task).spec,
        "params": ANALYSES[analysis].complete(params),
    }


def key_of(spec: Mapping[str, Any], model_hash: str | None = None) -> str:
    """The store's key of a spec; reads the model's files for their fingerprint, but loads nothing."""
    plain = {"dtype": "float32", "fold": False, "merge": False, "trust_remote_code": False, "route": "", "tasks": ""}
    options = plain | spec["model"]
    model_hash = model_hash or find(options["reference"]).hash
    other = _other(spec, str(options["reference"]))
    return store.key(
        spec["analysis"], spec["params"], f"{model_hash}{other}", options, Task.from_spec(spec["task"]).hash
    )


def _other(spec: Mapping[str, Any], reference: str) -> str:
    """Hash of the files of the other model that a spec names; empty where there is none."""
    parameter = ANALYSES[spec["analysis"]].other
    named = parameter and (spec["params"][parameter] or reference.partition("@")[0])
    try:
        return find(named).hash if named else ""
    except ModelError:  # not a reference, such as the word for a mean; or one that the analysis will refuse
        return ""


def stored(spec: Mapping[str, Any]) -> xr.Dataset | None:
    """The result of a spec, if the store has it."""
    return store.find(spec["analysis"], key_of(spec))


def run(
    analysis: str, model: "Model | str | Mapping[str, Any]", task: Any, *, refresh: bool = False, **params: Any
) -> xr.Dataset:
    """The result of an analysis, from the store or computed here and kept.

    Args:
        analysis: a name from `workbench.analyses.ANALYSES`.
        model: a loaded model, the reference of one, or the options `load` takes.
        task: a `Task`, or the name of one.
        refresh: compute again even if the store has it.
        **params: the analysis' own keywords.
    """
    spec = specify(analysis, model, task, params)
    live_hash = getattr(model, "hash", None)
    key = key_of(spec, live_hash)
    kept = None if refresh else store.find(analysis, key)
    if kept is not None:
        return kept
    if live_hash is None:
        from workbench.models.load import load

        model = load(**spec["model"])
    return keep(compute(spec, model), analysis, key)


def compute(spec: Mapping[str, Any], model: Any) -> xr.Dataset:
    """What the analysis of a spec finds in a loaded model."""
    return ANALYSES[spec["analysis"]].run(model, Task.from_spec(spec["task"]), **spec["params"])


def keep(ds: xr.Dataset, analysis: str, key: str) -> xr.Dataset:
    """Store a finished result; when it cannot be written it is still returned, with a warning."""
    if ds.attrs.get("partial"):
        return ds
    try:
        store.save(ds, store.path_of(analysis, key))
    except store.StoreError as error:
        warnings.warn(f"{error} The result itself is returned.", stacklevel=3)
    return ds


def rerun(ds: xr.Dataset) -> tuple[xr.Dataset, float]:
    """A result computed again from its own attributes, and the largest difference of its primary variable.

    Raises:
        EngineError: for a result that was made from other results, such as an overlap.
    """
    if "model_spec" not in ds.attrs:
        raise EngineError(f"This {ds.attrs['analysis']} was made from other results; rerun those, and make it again.")
    names = {"model": "model_spec", "task": "task_spec", "params": "params"}
    spec = {name: json.loads(ds.attrs[attr]) for name, attr in names.items()}
    again = run(ds.attrs["analysis"], spec["model"], spec["task"], refresh=True, **spec["params"])
    primary = ds.attrs["primary"]
    return again, float(abs(again[primary] - ds[primary]).max())
