"""See what a transformer shares between its tasks.

    import workbench as wb

    model = wb.load("zoo/tasks")                    # or a local directory, a hub id; wb.wrap(module, tokenizer)
    model                                           # shows its trust card
    ioi = wb.task("ioi", corruption="value_swap")   # or wb.Task.from_records(your_pairs)
    co = wb.task("colored_objects", corruption="value_swap")

    a = wb.run("head_patching", model, ioi)         # an xarray.Dataset, kept in the store
    b = wb.run("head_patching", model, co)
    wb.show(a)                                      # layer x head map
    shared = wb.overlap(a, b, top=0.125)             # which heads both use, against two nulls
    wb.show(shared)

    wb.run("path_patching", model, ioi, stages="logits@END; q@END")   # in stages from the output backwards
    edges = wb.run("edge_attribution", model, ioi)  # EAP-IG, the strongest edges patched exactly beside it
    wb.show(wb.run("faithfulness", model, ioi))     # everything outside the circuit really ablated
    wb.run("ablation", model, co, sets=wb.circuit_sets(shared))       # one task's heads gone, the other measured

    wb.show(wb.run("sink_scores", model, ioi))      # where attention sinks form
    job = wb.submit("head_patching", "zoo/tasks", ioi)   # the same in the engine: job.progress, job.cancel()
    again, difference = wb.rerun(a)                 # a result is computed again from its attributes

A new task, analysis, view, method or widget is one file and one line: see CONTRIBUTING.md.
"""

import os
from typing import TYPE_CHECKING, Any

from workbench.analyses import (
    ANALYSES,
    circuit_sets,
    compare,
    overlap,
    routing_drift,
    task_list,
    task_routing,
    top_changes,
)
from workbench.engine import submit, submit_tune
from workbench.experiments import paired
from workbench.methods import METHODS
from workbench.mixtures import mixture_study, study_cost
from workbench.registry import WorkbenchError
from workbench.results import rerun, run
from workbench.runs import Run
from workbench.schema import concat
from workbench.tasks import TASKS, Task
from workbench.tasks import make_task as task
from workbench.tuning import estimate, tune

if TYPE_CHECKING:
    import anywidget
    import plotly.graph_objects as go
    import torch
    import xarray as xr

    from widgets.training_curves import TrainingCurves
    from workbench.jobs import TuneJob
    from workbench.models.model import Model

__all__ = [
    "ANALYSES",
    "METHODS",
    "TASKS",
    "Run",
    "Task",
    "WorkbenchError",
    "circuit_sets",
    "compare",
    "concat",
    "estimate",
    "follow",
    "link",
    "load",
    "mixture_study",
    "overlap",
    "paired",
    "rerun",
    "routing_drift",
    "run",
    "show",
    "study_cost",
    "submit",
    "submit_tune",
    "task",
    "task_list",
    "task_routing",
    "top_changes",
    "tune",
    "wrap",
]


def load(reference: str | os.PathLike, **options: Any) -> "Model":
    """A model ready to trace: see `workbench.models.load.load`, whose options these are."""
    from workbench.models.load import load as load_model

    return load_model(reference, **options)


def wrap(module: "torch.nn.Module", tokenizer: Any, **options: Any) -> "Model":
    """A live transformers or PEFT model ready to trace: see `workbench.models.load.wrap`."""
    from workbench.models.load import wrap as wrap_model

    return wrap_model(module, tokenizer, **options)


def follow(job: "TuneJob") -> "TrainingCurves":
    """The live curves of a fine-tune in the engine: see `workbench.live.follow`."""
    from workbench.live import follow as follow_job

    return follow_job(job)


def link(*widgets: "anywidget.AnyWidget") -> None:
    """One selected head for several widgets: see `workbench.views.link`."""
    from workbench.views import link as link_widgets

    link_widgets(*widgets)


def show(ds: "xr.Dataset", view: str | None = None, **options: Any) -> "go.Figure | anywidget.AnyWidget":
    """The best view of a result, or the one named: see `workbench.views.show`."""
    from workbench.views import show as show_view

    return show_view(ds, view, **options)
