"""What the parts of the Sinks page have in common: running text of both tasks, one of which is looked at closely."""

from typing import Any

import param
import xarray as xr

from workbench.app.page import TracedPage
from workbench.results import specify
from workbench.tasks import make_task


class SinkPart(TracedPage):
    """A part over running text of both tasks; `viewed` is the one shown in detail."""

    number, tab = 1, "sink"
    watched: tuple[str, ...] = ("model", "checkpoint", "task_a", "task_b", "n", "seed", "length")

    viewed = param.Selector(objects={"First task": 0, "Second task": 1}, default=0)

    def reading(self, analysis: str, **params: Any) -> list[dict]:
        """An analysis of each task's running text, one spec where both tasks are the same."""
        s = self._session
        names = list(dict.fromkeys((s.task_a, s.task_b)))
        return [specify(analysis, s.reference, make_task(name, n=s.n, seed=s.seed), params) for name in names]

    @property
    def at(self) -> int:
        """Which result is shown in detail."""
        return min(self.viewed, len(self._results) - 1)

    @property
    def one(self) -> xr.Dataset:
        """The result that is shown in detail."""
        return self._results[self.at]
