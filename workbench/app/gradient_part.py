"""What the parts of the Gradients page have in common: which tasks are compared, and how a pair is said."""

from typing import Any

import numpy as np
import xarray as xr

from workbench.app.further import beside
from workbench.app.page import TracedPage
from workbench.results import specify
from workbench.session import Session
from workbench.tasks import Task, make_task

CHANCE = 0.05  # of pairs whose 95 % interval leaves out 0 although their cosine is 0


class GradientPart(TracedPage):
    """A part over the gradients of the session's two tasks and the further ones."""

    number, tab = 3, "gradient"
    watched: tuple[str, ...] = (
        *("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed"),
        "others",
    )

    def comparing(self, analysis: str, **params: Any) -> dict:
        """An analysis of all tasks at once."""
        s = self._session
        return specify(analysis, s.reference, first(s), {"tasks": beside(s, corruption=True), **params})

    def _specs(self) -> list[dict]:
        return [self.comparing("gradient_alignment")]


def first(session: Session) -> Task:
    """The session's first task."""
    return make_task(session.task_a, n=session.n, seed=session.seed, corruption=session.corruption_a)


def pairs(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Every two tasks of a result, in its order."""
    names = [str(name) for name in ds["task"].values]
    return [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]


def of_kind(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """The modules of one kind."""
    return ds.isel(module=ds["kind"].values == kind)


def said(at: xr.Dataset) -> str:
    """One cosine beside its interval and what unrelated gradients give, of one module and one pair."""
    value, low, high, floor = (float(at[name]) for name in ("cosine", "cosine_low", "cosine_high", "floor"))
    return f"{value:z.3f} ({low:z.3f} to {high:z.3f}; unrelated gradients ±{1.96 * floor:.3f})"


def counted(ds: xr.Dataset) -> tuple[int, int, int]:
    """How many cosines agree and how many conflict outside the noise, and of how many; a pair counts once."""
    cosine, clear = (ds[name].transpose(..., "task", "receiver").values for name in ("cosine", "clear"))
    one, other = np.triu_indices(ds.sizes["task"], 1)
    cosine, clear = cosine[..., one, other], clear[..., one, other] > 0
    return int((clear & (cosine > 0)).sum()), int((clear & (cosine < 0)).sum()), cosine.size


def most_opposed(ds: xr.Dataset) -> xr.Dataset:
    """The module and pair with the lowest cosine: of those outside the noise, if there are any."""
    every = [ds.sel(task=one, receiver=other) for one, other in pairs(ds)]
    single = [at.isel(module=place) for at in every for place in range(at.sizes["module"])]
    return min(single, key=lambda at: float(at["cosine"]) - 2.0 * float(at["clear"]))
