"""Routing, load: how evenly the experts are used, layer by layer, and where each token of a text goes."""

from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from workbench.app.parts import FigureSlot, Theme, choice, code, heading
from workbench.app.routing_part import RoutingPart
from workbench.app.runner import Runner
from workbench.models.expert_names import expert_name
from workbench.session import Session
from workbench.views import expert_load, expert_strip

BALANCE = {"balance": "Balance loss", "load_cv2": "CV² of loads", "max_load": "Largest share"}
MEANS = {
    "token_entropy": "Entropy of a token",
    "marginal_entropy": "Entropy of the mean",
    "z_loss": "z-loss",
    "margin": "Margin",
}
STYLE = """<style>
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: left; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid currentColor; }
small { display: block; opacity: 0.8; font-size: 12px; }
div { overflow-x: auto; }
</style>"""


class LoadPart(RoutingPart):
    """Loads of both tasks as a map or as bars of one layer, the numbers of balance, and one sequence token by token."""

    part, doing = 0, "Reading the routing of"

    shown = param.Selector(objects={"All layers": "map", "One layer": "bars"}, default="map")
    sequence = param.Integer(0, bounds=(0, 3))

    def __init__(self, session: Session, runner: Runner, theme: Theme, **params: Any) -> None:
        super().__init__(session, runner, **params)
        self._loads, self._strip = FigureSlot(theme, 400), FigureSlot(theme, 340)
        self._numbers = pn.pane.HTML("", sizing_mode="stretch_width", margin=(5, 0))
        self._layers.visible = False
        self._slider = pmui.IntSlider.from_param(self.param.sequence, label="Sequence", width=220)
        self.param.watch(self._draw_loads, "shown")
        session.param.watch(self._draw_loads, "layer")
        self.param.watch(self._draw_one, "viewed")
        self.param.watch(self._draw_strip, "sequence")

    def __panel__(self) -> pn.viewable.Viewable:
        return self.framed(
            heading(
                "Which experts the tokens go to",
                "Share of a task's tokens that each expert gets. The null is an even router, which sends every token "
                "to any experts with the same chance: white on the map, the dotted line beside the bars; red gets "
                "more, blue less.",
            ),
            pn.Row(choice(self.param.shown), self._layers),
            self._loads,
            heading("One task closely", "What follows is of this task."),
            choice(self.param.viewed),
            heading(
                "How even it is",
                "Below the first three numbers stands what an even router gives for as many tokens, and its 95 % "
                "point; bold is above that. Below the others stands their 95 % interval over sequences. Entropies are "
                "shares of the most there is: the first is low where a router is sure of each token, the second where "
                "it uses few experts.",
            ),
            self._numbers,
            heading(
                "Where each token goes",
                "Colour and number: the expert with the largest logit, layers down. Hover a cell for all "
                "probabilities, the weights, and the margin of the choice.",
            ),
            self._slider,
            self._strip,
        )

    def _specs(self) -> list[dict]:
        return self.reading("routing", length=self._session.length)

    async def _draw(self) -> None:
        self._offer_layers()
        self._headline.say(summary(self._results), "info")
        self.param.sequence.bounds = (0, self._results[0].sizes["component"] - 1)
        after = 'wb.show(a, "expert_load")\nwb.show(a, "expert_load", layer=0)\nwb.show(a, "expert_strip", sequence=0)'
        self._code.replace(code(self._drawn, after))
        self._draw_loads()
        self._draw_one()

    def _draw_loads(self, *_: Any) -> None:
        self._layers.visible = self.shown == "bars"
        if self._results:
            self._loads.draw(expert_load(self.joined, layer=self.layer if self.shown == "bars" else None))

    def _draw_one(self, *_: Any) -> None:
        if self._results:
            self._numbers.object = table(self.one)
            self._draw_strip()

    def _draw_strip(self, *_: Any) -> None:
        if self._results:
            self._strip.draw(expert_strip(self.one, sequence=self.sequence))


def table(ds: xr.Dataset) -> str:
    """The numbers of balance as an HTML table, a row a layer."""
    names = "".join(f"<th>{escape(name)}</th>" for name in ("Layer", *BALANCE.values(), *MEANS.values()))
    rows = []
    for layer in ds["layer"].values.tolist():
        at = ds.sel(layer=layer)
        cells = [f"<td>{layer}</td>", *(_beside_even(at, name) for name in BALANCE), *(_mean(at, n) for n in MEANS)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"{STYLE}<div><table><tr>{names}</tr>{''.join(rows)}</table></div>"


def _beside_even(at: xr.Dataset, name: str) -> str:
    value, null, high = (float(at[f"{name}{end}"]) for end in ("", "_null", "_null_high"))
    text = f"<b>{value:.3f}</b>" if value > high else f"{value:.3f}"
    return f"<td>{text}<small>even {null:.3f}, 95 % {high:.3f}</small></td>"


def _mean(at: xr.Dataset, name: str) -> str:
    value, low, high = (float(at[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"<td>{value:.3f}<small>{low:.3f} to {high:.3f}</small></td>"


def summary(results: list[xr.Dataset]) -> str:
    """Which expert gets most of each task, and how far from even the least even layer is."""
    first, parts = results[0], []
    if first.attrs.get("dense"):
        return _weighed(results)
    for ds in results:
        most = ds["load"].argmax(["layer", "expert"])
        layer, expert = int(ds["layer"][most["layer"]]), int(ds["expert"][most["expert"]])
        worst = ds.isel(layer=int(ds["balance"].values.argmax()))
        parts.append(
            f"{expert_name(layer, expert)} gets most tokens of {ds.attrs['task']} ({float(ds['load'].max()):.0%}), and "
            f"layer {int(worst['layer'])} is the least even (balance loss {float(worst['balance']):.2f}, an even "
            f"router {float(worst['balance_null']):.2f})"
        )
    even, low, high = (float(first[name]) for name in ("load_null", "load_null_low", "load_null_high"))
    return (
        f"In {first.attrs['model']} each token goes to {first.attrs['k']} of {first.attrs['experts']} experts a layer. "
        f"{'; '.join(parts)}. An even router gives each expert {even:.0%} of the tokens ({low:.1%} to {high:.1%} by "
        f"chance, {first.attrs['tokens']} tokens)."
    )


def _weighed(results: list[xr.Dataset]) -> str:
    """Which expert has most weight in each task where every token goes to all, beside weights renamed at random."""
    first, parts = results[0], []
    for ds in results:
        most = ds["gate"].argmax(["layer", "expert"])
        at = ds.isel(most)
        value, low, high = (float(at[name]) for name in ("gate", "gate_null_low", "gate_null_high"))
        name = expert_name(int(at["layer"]), int(at["expert"]))
        parts.append(f"{name} gets most weight in {ds.attrs['task']} ({value:.0%}; renamed {low:.1%} to {high:.1%})")
    return (
        f"In {first.attrs['model']} each token goes to all {first.attrs['experts']} experts of a layer, so that only "
        f"their weights differ. {'; '.join(parts)}. Even weights would be {float(first['gate_null']):.0%}; the range "
        f"is that of weights renamed at random, {first.attrs['tokens']} tokens."
    )
