"""Sinks, secondary: tokens that become sinks in mid-network, how long they stay, and which MLP stage makes them."""

from typing import Any

import panel as pn
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Theme, choice, code, heading
from workbench.app.runner import Runner
from workbench.app.sink_part import SinkPart
from workbench.session import Session
from workbench.views import norm_lifetime, sink_directions_plot, sink_levels, stage_alignment

LEAST = 3  # sinks whose inputs have directions


class SecondaryPart(SinkPart):
    """Sink levels against a null, norm against lifetime, and the alignment through the MLP."""

    part, doing = 1, "Looking for secondary sinks in"

    window = param.Selector(
        objects={"Layers of the primary sink": "norm", "All layers": "all"}, default="norm", doc="Layers looked at."
    )

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._levels, self._norms, self._stages, self._directions = (FigureSlot(theme, 430) for _ in range(4))
        self.param.watch(self._again, "window")
        self.param.watch(self._look, "viewed")

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(
            self._headline,
            heading(
                "Sink levels",
                "A secondary sink is a later token whose residual an MLP turns towards that of the primary sink (the "
                "first token): |cosine| above 0.9 from one layer, its creation, for some layers, its lifetime. The "
                "null looks for the direction of a random ordinary token instead.",
            ),
            pn.Row(choice(self.param.viewed), choice(self.param.window)),
            self._levels,
            heading(
                "Norm against lifetime",
                "The larger the MLP output that creates a sink, the longer it should last and the more attention it "
                "should get.",
            ),
            self._norms,
            heading(
                "Where in the MLP it happens",
                "Cosine between a secondary sink and the primary one at each stage of the MLP that creates it, beside "
                "tokens that are no sinks.",
            ),
            self._stages,
            heading(
                "Many inputs, one direction",
                "The principal components of the inputs that make secondary sinks, each pushed through that MLP alone: "
                "the direction that comes out, and its norm, beside random inputs.",
            ),
            self._directions,
            self._code,
            sizing_mode="stretch_width",
        )

    def _specs(self) -> list[dict]:
        return self.reading("secondary_sinks", length=self._session.length, window=self.window)

    async def _draw(self) -> None:
        after = 'wb.show(a)\nwb.show(a, "norm_lifetime")\nwb.show(a, "stage_alignment")'
        self._code.replace(code(self._drawn, after))
        await self._look()

    async def _look(self, *_: Any) -> None:
        if not self._results:
            return
        self._headline.say(summary(self._results), "info")
        found = int(self.one["alignment_n"].sel(measured="sink"))
        with self._runner.reporting(self._headline.say):
            self._levels.draw(sink_levels(self.one))
            if self.one.attrs["sinks"]:
                self._norms.draw(norm_lifetime(self.one))
            else:
                self._norms.wait("No other token is a sink, so there is no norm to set against a lifetime.")
            if found:
                self._stages.draw(stage_alignment(self.one))
            else:
                self._stages.wait("There is no secondary sink, so there is no MLP that creates one.")
            if found >= LEAST:
                await self._push()
            else:
                self._directions.wait(f"It takes {LEAST} secondary sinks or more; {found} were found.")

    async def _push(self) -> None:
        """Draw what the MLP makes of the directions of its inputs."""
        self._directions.wait("Pushing directions through the MLP …")
        specs = self.reading("sink_directions", length=self._session.length, window=self.window)
        (ds,) = await self.fetch_all([specs[self.at]], "directions")
        self._directions.draw(sink_directions_plot(ds))


def summary(results: list[xr.Dataset]) -> str:
    """How many secondary sinks there are, task by task, beside the null."""
    parts = []
    for ds in results:
        found = int(ds["count"].sel(component="secondary"))
        null = ds["count_null"].sel(component="secondary")
        parts.append(
            f"{found or 'no'} secondary sink{'s' * (found != 1)} in {ds.sizes['prompt'] * ds.sizes['key_pos']} tokens "
            f"of {ds.attrs['task']} (random directions: {float(null.mean()):.1f})"
        )
    first = results[0].attrs
    return f"{first['model']} has {', and '.join(parts)}. Rule: {first['rule']}."
