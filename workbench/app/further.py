"""Further tasks beside the session's two, for pages that compare any number of tasks."""

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.tasks import TASKS


def further(session: Session) -> list[str]:
    """Names of the further tasks chosen, without the session's two."""
    own = {session.task_a, session.task_b}
    return [name for name in TASKS if name in session.others.split(",") and name not in own]


def beside(session: Session, *, corruption: bool = False) -> str:
    """All tasks but the first, as the keyword `tasks` of an analysis takes them.

    Raises:
        WorkbenchError: when there are none, as both tasks are the same.
    """
    second = f"{session.task_b}:{session.corruption_b}" if corruption else session.task_b
    names = [*([second] if session.task_b != session.task_a else []), *further(session)]
    if not names:
        raise WorkbenchError(
            "Both tasks are the same; choose two different ones in the sidebar, or further ones here, to compare them."
        )
    return ",".join(names)


class FurtherTasks(pn.viewable.Viewer):
    """A field to choose further tasks; what is chosen is the session's `others`."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._field = pmui.MultiChoice(label="Further tasks", width=420, margin=(8, 10, 14, 0))
        self._offer()
        self._field.param.watch(self._take, "value")
        session.param.watch(self._offer, ["task_a", "task_b", "others"])

    def __panel__(self) -> pn.viewable.Viewable:
        return self._field

    def _offer(self, *_: Any) -> None:
        own = {self._session.task_a, self._session.task_b}
        options = [name for name in TASKS if name not in own]
        self._field.param.update(options=options, value=further(self._session))

    def _take(self, event: Any) -> None:
        if sorted(event.new) != sorted(further(self._session)):
            self._session.others = ",".join(name for name in TASKS if name in event.new)
