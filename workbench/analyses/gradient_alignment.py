"""Where the gradients of several tasks point the same way or against each other: by layer, matrix, head and expert."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from workbench.analyses._base import AnalysisError, analysis, at_least_one
from workbench.analyses._gradients import measures, said
from workbench.analyses._patching import chunks
from workbench.analyses._several import (
    Encoded,
    answer_losses,
    batches_of,
    check_differentiable,
    encoded,
    rows_of,
    said_of,
)
from workbench.analyses._shelf import Grams, Shelf
from workbench.analyses._slopes import Slope, Slopes, together
from workbench.progress import Cancelled, track
from workbench.tasks import Prompts, Task

if TYPE_CHECKING:
    from workbench.models.division import Division, Unit
    from workbench.models.model import Model

LEAST = 2  # batches that say anything of noise
PAIR = ("module", "task", "receiver")


@analysis(
    about="Cosine of every two tasks' gradients on each layer, matrix, head and expert, beside what noise allows.",
    sign="1 = both tasks' gradients point the same way, negative = a step for one undoes the other",
    primary="cosine",
    paper="2001.06782 (Yu et al.): gradient conflict and magnitude similarity, definitions 1 and 2; 2211.03831 (Caccia "
    "et al.): gradient alignment of tasks on shared adapters",
)
def gradient_alignment(
    model: "Model",
    task: Task,
    *,
    tasks: str = "",
    batches: int = 8,
    parameters: Literal["all", "adapter"] = "all",
    batch: int = 32,
) -> xr.Dataset:
    """How far the gradients of several tasks agree, for every part of the model.

    The loss of a task is the mean over its prompts of -log p(answer | prompt), in nats, at END (of several right
    answers: of any of them). All gradients are taken at the same weights, in float32 at least, without dropout, and of
    `batches` independent batches of each task; the cosine is that of the tasks' mean gradients. With g_tb the gradient
    of batch b of task t, B batches and m the means over b:

    - interval: jackknife over batches, leaving one out of both tasks, with Student's t of B - 1 degrees of freedom.
    - `ceiling`: mean of g_tb . g_tb' over different batches / |m_t|^2, the cosine to expect of two independent
      gradients of one task from as many prompts; without bias, so a little under 0 where there is only noise.
    - `disattenuated`: the cosine of the expected gradients, mean of g_tb . g_ub' over different batches / the root of
      the product of the same of t and of u. 0 where not both tasks are `reliable` (ceiling of at least 0.25).
    - `floor`: standard deviation of the cosine of unrelated gradients, 1 / sqrt(d) on d parameters; where a task has
      no gradient (tokens it does not read, experts it does not use) those parameters do not count. `z` is the cosine
      over it. Gradients are far from evenly spread over parameters, so that true chance is wider.
    - `clear`: the interval excludes 0 and the cosine is beyond 1.96 floors.
    - `conflict`: share of the pairs of different batches whose cosine is negative; on the diagonal of one task's own.
    - `magnitude`: 2 |m_t| |m_u| / (|m_t|^2 + |m_u|^2).
    - `support_cosine`: the cosine on the parameters where both tasks have a gradient; `common` is their share.

    Args:
        model: from `workbench.load` or `workbench.wrap`, with raw weights.
        task: the first task; its clean prompts are read.
        tasks: the others, by name, `name:corruption`, separated by commas, with the first one's number of prompts and
            seed; or what `task_list(...)` makes of any tasks; empty for every other shipped task that fits.
        batches: independent batches of each task, 4 or more for an interval worth reading; n is divided among them.
        parameters: `all`, or only those an `adapter` added.
        batch: prompts in one pass, at most.

    Returns:
        The measures above [module, task, receiver], `norm`, `ceiling` and `reliable` [module, task], and `loss` [task,
        seed], of each batch. Modules are `all` (`base` beside it where there is an adapter), a kind of matrix over all
        layers (`W_Q`), a layer (`L0`), a matrix of a layer (`L0.W_Q`, norms and routers too), a head (`L0H1`: its
        slices of W_Q and W_O and the keys and values it reads, which heads of one group share), an expert (`L0E1`).
        Coordinates of `module`: `kind` (whole, kind, layer, matrix, head, expert), `matrix`, `at_layer`, `at_head`,
        `at_expert` (-1 where none) and `parameters`, their number. Where a task has no gradient at all its cosines
        are 0 and so is `norm`.

    Raises:
        AnalysisError: for fewer than two tasks or batches, fewer prompts than batches, folded weights, no adapter where
            one is asked for, or one that has other weights for every task.
    """
    at_least_one(batch=batch)
    if batches < LEAST:
        raise AnalysisError(f"batches is {batches}; it must be {LEAST} or more, to tell a gradient from its noise.")
    check_differentiable(model)
    read = encoded(model, task, tasks)
    division = divided(model, parameters)
    grams, losses = gathered(model, division, read, batches, batch)
    ds = _dataset(division, grams, losses, read, batches)
    ds.attrs["title"] = f"gradients of {', '.join(ds['task'].values)} in {model.reference}"
    return ds


def divided(model: "Model", parameters: str = "all") -> "Division":
    """The model's parameters, or those of its adapter, by what they belong to."""
    from workbench.models.parameters import adapter_parameters, divide

    names = set(adapter_parameters(model.plain)) if parameters == "adapter" else None
    if names is not None and not names:
        raise AnalysisError(f"'{model.reference}' has no live adapter; use parameters='all'.")
    mapping: Any = model.bridge.adapter.component_mapping
    return divide(model.plain, mapping, model.n_heads, names)


def gathered(
    model: "Model", division: "Division", read: list[Encoded], batches: int, batch: int
) -> tuple[Grams, np.ndarray]:
    """Inner products of all gradients, and the loss of every batch, [task, batch]; of the batches that were done."""
    from workbench.models.parameters import differentiable

    slopes = Slopes(differentiable(model.plain), division.names)
    parts = [batches_of(each.prompts, batches) for each in read]
    work = [(b, t) for b in range(batches) for t in range(len(read))]
    losses = np.zeros((len(read), batches))
    slopes.believe(lambda: answer_losses(slopes.module, rows_of(read[0].prompts, parts[0][0][:1])).sum())
    with Shelf(division, len(read), batches) as shelf:
        for b, t in track(work, "gradient_alignment", len(work)):
            losses[t, b], found = gradient(slopes, read[t].prompts, parts[t][b], batch)
            shelf.add(found)
            del found  # before the next one is made
        done = shelf.rows // len(read)
        if done < LEAST:
            raise Cancelled("Stopped before every task had two batches, so there is nothing to compare.")
        return shelf.grams(), losses[:, :done]


def gradient(slopes: Slopes, prompts: Prompts, rows: np.ndarray, batch: int) -> tuple[float, dict[str, Slope]]:
    """Mean loss of some prompts, and its gradient by parameter name."""
    total, summed = 0.0, {}
    for some in chunks(len(rows), batch):
        part = rows_of(prompts, rows[some.start : some.stop])
        loss, found = slopes(lambda part=part: answer_losses(slopes.module, part).sum() / len(rows))
        total, summed = total + loss, together(summed, found)
    return total, summed


def _dataset(division: "Division", grams: Grams, losses: np.ndarray, read: list[Encoded], batches: int) -> xr.Dataset:
    found = measures(grams.of(division.units))
    count = np.array([division.sizes[list(unit.pieces)].sum() for unit in division.units])
    found["common"] = grams.of(division.units).common / count[:, None, None]
    variables: dict[str, Any] = {name: (PAIR[: v.ndim], v, said(name)) for name, v in found.items()}
    say = {"long_name": "loss of each independent batch", "units": "nats"}
    variables["loss"] = (("task", "seed"), losses, say)
    titles = [each.task.title for each in read]
    coords = {"module": [unit.name for unit in division.units], "task": titles, "receiver": titles}
    coords |= _places(division.units) | {"parameters": ("module", count), "seed": np.arange(losses.shape[1])}
    ds = xr.Dataset(variables, coords=coords)
    used = [losses.shape[1] * (len(each.prompts) // batches) for each in read]
    ds.attrs = said_of(read) | {"n": min(used), "batches": losses.shape[1]}
    return ds


def _places(units: "tuple[Unit, ...]") -> dict[str, Any]:
    """Coordinates that say what each module is."""
    found: dict[str, Any] = {name: ("module", [getattr(unit, name) for unit in units]) for name in ("kind", "matrix")}
    for name in ("layer", "head", "expert"):
        found[f"at_{name}"] = ("module", np.array([getattr(unit, name) for unit in units]))
    return found
