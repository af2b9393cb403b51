"""Circuits, heads: two tasks side by side, the heads both use, and where the selected head looks."""

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.analyses import overlap
from workbench.app.page import TracedPage
from workbench.app.parts import FigureSlot, GridSlot, Slot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.models.heads import head_name, parse_head
from workbench.results import specify
from workbench.session import Session
from workbench.views import attention_pattern, head_map, overlap_curve


class HeadsPart(TracedPage):
    """Head maps of both tasks with their shared heads, the overlap curve, and the attention of one head."""

    number, part, doing = 0, 0, "Tracing"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed")

    measure = param.Selector(objects={"Intersection over union": "iou", "Weighted overlap": "weighted"}, default="iou")
    viewed = param.Selector(objects={"First task": "a", "Second task": "b"}, default="a")

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._shared: xr.Dataset | None = None
        self._maps = GridSlot(session, "The head maps appear here as soon as both tasks are traced.")
        self._curve = FigureSlot(theme, 430)
        self._attention = Slot("Select a head in a map to see where it looks.")
        self._drawing = False
        session.param.watch(self._compare, "top")
        session.param.watch(self._look, ["head", "prompt"])
        session.param.watch(self._pick_token, "query")
        self.param.watch(self._draw_curve, "measure")
        self.param.watch(self._look, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        measure, viewed = choice(self.param.measure), choice(self.param.viewed)
        prompt = pmui.IntSlider.from_param(self._session.param.prompt, label="Prompt", width=260)
        return pn.Column(
            self._headline,
            heading(
                "Which heads carry each task",
                "Share of the clean answer that comes back when one head's clean output is put into the corrupted run: "
                "0 = corrupted, 1 = clean. Click a head, or use the arrow keys and Enter.",
            ),
            self._maps,
            heading(
                "Do the circuits overlap more than by chance?",
                "The line is what was found at each circuit size. The bands are chance: effects are shuffled over all "
                "heads, or within each layer, and each band ends at its 95 % point.",
            ),
            measure,
            self._curve,
            heading(
                "Where the selected head looks",
                "Rows are queries, columns the tokens they attend to. Click a row to choose a query.",
            ),
            pn.Row(viewed, prompt),
            self._attention,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.specs("head_patching")

    async def _draw(self) -> None:
        await self._compare()
        await self._look()

    async def _compare(self, *_: Any) -> None:
        if not self._results:
            return
        with self._runner.reporting(self._headline.say):
            self._shared = overlap(*self._results, top=self._session.top)
            self._maps.draw(head_map(self._shared))
            severity, text = summary(self._shared)
            self._headline.say(text, severity)
            self._draw_curve()
            self._code.replace(
                code(self._drawn, f"shared = wb.overlap(a, b, top={self._session.top})\nwb.show(shared)")
            )

    def _draw_curve(self, *_: Any) -> None:
        if self._shared is not None:
            self._curve.draw(overlap_curve(self._shared, measure=self.measure))

    async def _look(self, *_: Any) -> None:
        """Draw the attention of the selected head, or of the strongest shared one."""
        if self._shared is None:
            return
        ticket = self._runner.begin("attention")
        with self._runner.reporting():
            layer, head = self._head(self._shared["effect"])
            drawn = self._drawn[self.viewed == "b"]
            prompt = min(self._session.prompt, self._session.n - 1)
            spec = specify("attention", drawn["model"], drawn["task"], {"prompt": prompt})
            ds = await self._runner.fetch("attention", ticket, spec)
            fresh = self._attention.component is None
            self._drawing = True
            view = self._attention.draw(attention_pattern(ds, layer=layer, head=head, token=self._session.query))
            if fresh:
                view.param.watch(self._take_query, "token")
            self._drawing = False

    def _take_query(self, event: Any) -> None:
        """Remember the query a person has picked; one that came with a drawing is only where its prompt ends."""
        if not self._drawing:
            self._session.query = event.new

    def _pick_token(self, event: Any) -> None:
        view = self._attention.component
        if view is not None:
            shown = view.param.values()
            if 0 <= event.new < len(shown["tokens"]) and shown["token"] != event.new:
                view.param.update(token=event.new)

    def _head(self, effect: xr.DataArray) -> tuple[int, int]:
        """The selected head, or else the one whose least effect on a task is largest."""
        chosen = self._session.selected
        if chosen and chosen[0] < effect.sizes["layer"] and chosen[1] < effect.sizes["head"]:
            return parse_head(self._session.head)
        least = abs(effect).min("task")
        best = least.argmax(["layer", "head"])
        return int(best["layer"]), int(best["head"])


def summary(shared: xr.Dataset) -> tuple[str, str]:
    """Severity and a few words on what an overlap result says at its chosen size."""
    at = shared.sel(size=shared.attrs["chosen"])
    layers = shared["layer"].values
    cells = [(int(layers[row]), int(head)) for row, head in np.argwhere(shared["shared"].values)]
    names = ", ".join(head_name(*cell) for cell in cells) or "none"
    beyond = float(at["iou"]) > max(float(at["iou_null_high"]), float(at["iou_within_high"]))
    tasks = " and ".join(str(label) for label in shared["task"].values)
    verdict = "more than chance shares" if beyond else "no more than chance shares"
    text = (
        f"In {shared.attrs['model']}, {tasks} share {len(cells)} of their {shared.attrs['chosen']} strongest heads "
        f"({names}): {verdict}. Intersection over union {_against(at, 'iou')}; "
        f"weighted overlap {_against(at, 'weighted')}."
    )
    return ("success" if beyond else "warning"), text


def _against(at: xr.Dataset, measure: str) -> str:
    """A measure beside both of its nulls."""
    value, null, within = (float(at[f"{measure}{suffix}"]) for suffix in ("", "_null_high", "_within_high"))
    p = ", ".join(f"{float(at[f'{measure}_{name}_p']):.4f}" for name in ("null", "within"))
    return f"{value:.2f} (95 % point {null:.2f} over all heads, {within:.2f} within layers; p = {p})"
