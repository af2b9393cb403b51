"""The tasks of a fine-tune on its page: those of the sidebar until changed, further ones, and a person's own rows."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.parts import Note
from workbench.registry import WorkbenchError
from workbench.session import Session
from workbench.tasks import TASKS
from workbench.tasks.pools import TARGETS, read_rows

SMALL = {"size": "small", "margin": (6, 10, 6, 0)}
FILES = (".jsonl", ".ndjson", ".csv")


class Row(pn.viewable.Viewer):
    """One task: which, how corrupted, its weight and what is taught; a person's own rows have a weight only."""

    def __init__(
        self, entry: Mapping[str, Any], changed: Callable[[], None], remove: Callable[["Row"], None], **params: Any
    ) -> None:
        super().__init__(**params)
        self._changed, self._rows = changed, entry.get("rows")
        self._weight = pmui.TextInput(label="Weight", value=f"{float(entry.get('weight', 1)):g}", width=90, **SMALL)
        self._gone = pmui.Button(
            label="Remove", variant="text", size="small", margin=(10, 0, 0, 0), on_click=lambda _: remove(self)
        )
        self._weight.param.watch(self._tell, "value")
        if self._rows is None:
            self._choices(entry)
        else:
            self._name = entry["name"]

    def _choices(self, entry: Mapping[str, Any]) -> None:
        name = entry["name"]
        self._task = pmui.Select(label="Task", options=list(TASKS), value=name, width=210, **SMALL)
        known = list(TASKS[name].corruptions)
        self._corruption = pmui.Select(
            label="Corruption", options=known, value=entry.get("corruption") or known[0], width=190, **SMALL
        )
        self._target = pmui.Select(
            label="Taught",
            options={"the answer": TARGETS[0], "the wrong answer": TARGETS[1]},
            value=entry.get("target") or TARGETS[0],
            width=180,
            **SMALL,
        )
        self._task.param.watch(self._other_task, "value")
        for widget in (self._corruption, self._target):
            widget.param.watch(self._tell, "value")

    def __panel__(self) -> pn.viewable.Viewable:
        if self._rows is None:
            return pn.Row(self._task, self._corruption, self._target, self._weight, self._gone)
        text = f"{self._name}: {len(self._rows)} rows of your own"
        return pn.Row(
            pmui.TextInput(label="Task", value=text, disabled=True, width=600, **SMALL), self._weight, self._gone
        )

    def _other_task(self, event: Any) -> None:
        known = list(TASKS[event.new].corruptions)
        self._corruption.param.update(options=known, value=known[0])
        self._tell()

    def _tell(self, *_: Any) -> None:
        self._changed()

    @property
    def entry(self) -> dict[str, Any]:
        """The task as a spec has it."""
        weight = self._weight.value
        if self._rows is not None:
            return {"name": self._name, "weight": weight, "rows": self._rows}
        chosen = {"corruption": self._corruption.value, "target": self._target.value}
        return {"name": self._task.value, "weight": weight, **chosen}


class Mixture(pn.viewable.Viewer):
    """The tasks; `changed` is told when there are others."""

    def __init__(self, session: Session, changed: Callable[[], None], **params: Any) -> None:
        super().__init__(**params)
        self._session, self._told = session, changed
        self._own = False  # whether they differ from the sidebar's by the person's will
        self._rows: list[Row] = []
        self._box = pn.Column(sizing_mode="stretch_width")
        self._problem = Note()
        button = {"variant": "outlined", "size": "small", "margin": (6, 10, 6, 0)}
        self._add = pmui.Button(label="Add a task", on_click=self._add_task, **button)
        self._file = pmui.FileInput(
            accept=",".join(FILES), label="Upload your rows", size="small", variant="outlined", margin=(6, 10, 6, 0)
        )
        self._path = pmui.TextInput(
            label="or the path of a .jsonl or .csv with prompt and answer", width=420, placeholder=str(root()), **SMALL
        )
        self._file.param.watch(self._upload, "value")
        self._path.param.watch(self._read_path, "value")
        session.param.watch(self._follow, ["task_a", "task_b", "corruption_a", "corruption_b"])
        self.follow()

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._box, pn.Row(self._add, self._file, self._path), self._problem, sizing_mode="stretch_width"
        )

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The tasks as a spec has them."""
        return [row.entry for row in self._rows]

    def fill(self, entries: list[dict[str, Any]]) -> None:
        """Show these tasks."""
        self._own = True
        self._rows = [Row(entry, self._changed, self._remove) for entry in entries]
        self._show()

    def follow(self) -> None:
        """Show the sidebar's tasks, and go on doing so until something is changed here."""
        s = self._session
        pairs = dict.fromkeys(((s.task_a, s.corruption_a), (s.task_b, s.corruption_b)))
        self.fill([{"name": name, "corruption": corruption} for name, corruption in pairs])
        self._own = False

    def _follow(self, *_: Any) -> None:
        if not self._own:
            self.follow()

    def _changed(self) -> None:
        self._own = True
        self._told()

    def _show(self) -> None:
        self._problem.say("")
        self._box[:] = self._rows
        self._told()

    def _add_task(self, _: Any) -> None:
        used = {entry["name"] for entry in self.entries}
        name = next((name for name in TASKS if name not in used), next(iter(TASKS)))
        self.fill([*self.entries, {"name": name}])

    def _remove(self, row: Row) -> None:
        self._own = True
        self._rows = [other for other in self._rows if other is not row]
        self._show()

    def _upload(self, event: Any) -> None:
        if not event.new:
            return
        name = Path(str(self._file.filename)).name
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows{Path(name).suffix.lower()}"
            path.write_bytes(event.new)
            self._add_rows(Path(name).stem, path, name)

    def _read_path(self, event: Any) -> None:
        if not event.new:
            return
        try:
            path = allowed(event.new)
        except WorkbenchError as error:
            self._problem.say(str(error))
            return
        self._add_rows(path.stem, path, path.name)

    def _add_rows(self, name: str, path: Path, shown: str) -> None:
        try:
            rows = read_rows(path)
        except WorkbenchError as error:
            self._problem.say(f"{shown}: {error}")
            return
        self.fill([*self.entries, {"name": name, "rows": rows}])
        self._path.value = ""


def root() -> Path:
    """The folder under which a page may read files: `WORKBENCH_DATA`, or where the server was started."""
    return Path(os.environ.get("WORKBENCH_DATA") or ".").expanduser().resolve()


def allowed(text: str) -> Path:
    """The path a person typed, absolute or from the root.

    Raises:
        WorkbenchError: when it leads out of the root, or is no file there.
    """
    path = (root() / Path(text).expanduser()).resolve()
    if not path.is_relative_to(root()):
        raise WorkbenchError(
            f"'{text}' is not under {root()}; put the file there, or start the server with WORKBENCH_DATA set to its "
            "folder."
        )
    if not path.is_file():
        raise WorkbenchError(f"There is no file '{text}' under {root()}; name a .jsonl or .csv that is there.")
    return path
