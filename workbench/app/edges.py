"""Circuits, edges: the circuit as a graph, how faithful it is at each size, and how good the approximation is."""

from typing import Any

import numpy as np
import panel as pn
import param
import xarray as xr

from workbench.analyses import overlap
from workbench.app.page import TracedPage
from workbench.app.parts import FigureSlot, Slot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.models.heads import head_name
from workbench.session import Session
from workbench.views import circuit_graph, exact_scatter, faithfulness_curve

SHARED = 2


class EdgesPart(TracedPage):
    """The graph of one task's strongest edges, or of those both share; its size is dragged here or there."""

    number, part, doing = 0, 2, "Attributing edges in"
    watched = ("model", "checkpoint", "task_a", "corruption_a", "task_b", "corruption_b", "n", "seed")

    viewed = param.Selector(objects={"First task": 0, "Second task": 1, "Shared by both": SHARED}, default=0)

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._faithful: xr.Dataset | None = None
        self._graph = Slot("The graph appears here as soon as both tasks are attributed.")
        self._curve, self._scatter = FigureSlot(theme, 430), FigureSlot(theme, 430)
        self.param.watch(self._look, "viewed")
        session.param.watch(self._follow_head, "head")
        session.param.watch(self._resize, "edges")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "The circuit as a graph",
                "Edges from what writes (below) to what reads it (above), by integrated gradients; drag the number "
                "shown. Click a node, or use the arrow keys and Enter.",
            ),
            choice(self.param.viewed),
            self._graph,
            heading(
                "How much of the task the circuit keeps",
                "Every edge outside the circuit is really ablated. The band is random circuits of the same size and "
                "kinds of edges. The line marks the measured size nearest to the number shown above.",
            ),
            self._curve,
            heading(
                "How good the approximation is",
                "The strongest edges, patched one by one exactly, beside their attribution.",
            ),
            self._scatter,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.specs("edge_attribution")

    async def _draw(self) -> None:
        self._code.replace(
            code(self._drawn, 'wb.show(a)   # the graph\nwb.show(a, "exact_scatter")\nwb.show(wb.overlap(a, b))')
        )
        await self._look()

    async def _look(self, *_: Any) -> None:
        if not self._results:
            return
        with self._runner.reporting(self._headline.say):
            one = self._results[min(self.viewed, 1)]
            below = f" Below the graph: {one.attrs['task']}." if self.viewed == SHARED else ""
            self._headline.say(_summary(self._results) + below, "info")
            viewed, shown = self.viewed, one
            if viewed == SHARED:
                shown = await self.compute(overlap, *self._results, top=0.05, draws=200)
            if self.viewed != viewed:
                return  # it is drawn by the call that the change made
            self._draw_graph(shown)
            self._scatter.draw(exact_scatter(one))
            self._faithful = None
            self._curve.wait(f"Ablating circuits of every size on {one.attrs['task']} …")
            spec = self.specs("faithfulness")[min(self.viewed, 1)]
            self._faithful = (await self.fetch_all([spec], "faithfulness"))[0]
            self._draw_curve()

    def _draw_graph(self, ds: xr.Dataset) -> None:
        fresh = self._graph.component is None
        drawing = circuit_graph(ds, limit=self._session.edges)
        graph = self._graph.draw(drawing, selected=self._within(drawing.traits["shape"]))
        if fresh:
            graph.param.watch(lambda event: self._session.param.update(edges=event.new), "limit")
            graph.param.watch(self._take_head, "selected")

    def _within(self, shape: list[int]) -> list[int]:
        cell = self._session.selected
        return cell if cell and cell[0] < shape[0] and cell[1] < shape[1] else []

    def _take_head(self, event: Any) -> None:
        """A head that is picked is the session's; other nodes are only the graph's."""
        if len(event.new) == 2 and 0 <= event.new[0] < event.obj.shape[0] and event.new[1] >= 0:
            self._session.head = head_name(*event.new)
        elif not event.new:
            self._session.head = ""

    def _follow_head(self, *_: Any) -> None:
        graph = self._graph.component
        if graph is not None:
            shown = graph.param.values()
            wanted, chosen = self._within(shown["shape"]), shown["selected"]
            is_head = bool(chosen) and 0 <= chosen[0] < shown["shape"][0] and chosen[1] >= 0
            if chosen != wanted and (wanted or is_head):
                graph.param.update(selected=wanted)

    def _resize(self, event: Any) -> None:
        graph = self._graph.component
        if graph is not None and graph.param.values()["limit"] != event.new:
            graph.param.update(limit=event.new)
        self._draw_curve()

    def _draw_curve(self) -> None:
        if self._faithful is not None:
            sizes = self._faithful["size"].values
            wanted = self._session.edges or sizes.max()
            near = int(sizes[np.abs(np.log(sizes) - np.log(wanted)).argmin()])
            self._curve.draw(faithfulness_curve(self._faithful, size=near, slider=False))


def _summary(results: list[xr.Dataset]) -> str:
    """How well the approximation ranks edges, task by task."""
    parts = [f"{ds.attrs['task']} {ds.attrs['spearman']:.2f}" for ds in results]
    first = results[0]
    return (
        f"{int(first['valid'].sum())} edges, scored by {first.attrs['method']} ({first.attrs['steps']} steps). "
        f"Spearman correlation with exact patching of the {first.sizes['edge']} strongest: {', '.join(parts)}."
    )
