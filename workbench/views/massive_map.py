"""The largest activations of every layer beside their median, and the loss when the massive ones are overwritten."""

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, view

RANKS = ("layer", "measured")


@view(
    requires={"layer", "measured"},
    variables={"magnitude", "magnitude_null", "median", "limit"},
    about="Largest |activations| by layer, their median, and what overwriting the massive ones does to the loss.",
)
def massive_map(ds: xr.Dataset) -> go.Figure:
    """Curves over layers on a log scale, with dimension, position and token on hover; beside them the interventions.

    The dashed line is what an activation must reach to be massive, the dotted one the largest of as many Gaussian
    numbers with the same median.
    """
    magnitude, edited = only(ds, "magnitude", *RANKS), int(ds.attrs["layer_edited"])
    tried = "loss_change" in ds and edited >= 0
    columns = {"cols": 2, "column_widths": [0.62, 0.38], "horizontal_spacing": 0.12} if tried else {}
    figure = make_subplots(**columns)
    _lines(figure, ds)
    for index, label in enumerate(magnitude["measured"].values):
        _rank(figure, ds, label, theme.TASKS[index % len(theme.TASKS)])
    notes = [f"massive: {ds.attrs['rule']}"]
    if tried:
        _losses(figure, ds)
        notes.append(f"right: massive activations overwritten in the output of block {edited}, with two controls")
    elif edited < 0:
        notes.append("no activation is massive, so none was overwritten")
    layout = heading(ds, f"Largest activations of {ds.attrs['task']} in {ds.attrs['model']}", *notes, height=500)
    figure.update_layout(**layout, legend={"orientation": "h", "y": -0.3})
    figure.update_xaxes(title="layer", dtick=1 if len(magnitude) < 16 else None, row=1, col=1)
    figure.update_yaxes(title="|activation|, log scale", type="log", row=1, col=1)
    return figure


def _lines(figure: go.Figure, ds: xr.Dataset) -> None:
    """The median, the limit, and the null of the largest."""
    null = only(ds, "magnitude_null", *RANKS).values[:, 0]
    drawn = {
        "median": (only(ds, "median", "layer").values, {"color": theme.QUIET, "width": 2}),
        "massive from here on": (only(ds, "limit", "layer").values, {"color": theme.QUIET, "dash": "dash", "width": 1}),
        "largest of as many Gaussian numbers": (null, {"color": theme.QUIET, "dash": "dot", "width": 1}),
    }
    for name, (values, line) in drawn.items():
        figure.add_scatter(
            x=ds["layer"].values,
            y=values,
            mode="lines",
            line=line,
            name=name,
            hovertemplate=f"{name}: %{{y:.3g}}<extra></extra>",
        )


def _rank(figure: go.Figure, ds: xr.Dataset, label: str, colour: str) -> None:
    """One rank's curve; larger markers where most sequences have a massive activation."""
    at = ds.sel(measured=label)
    value = at["magnitude"].values
    massive = only(ds, "massive_share", "layer").values >= 0.5
    figure.add_scatter(
        x=ds["layer"].values,
        y=value,
        mode="lines+markers",
        line={"color": colour, "width": 1.5},
        marker={"size": [11 if is_massive else 6 for is_massive in massive], "color": colour},
        error_y={"array": at["magnitude_high"].values - value, "arrayminus": value - at["magnitude_low"].values},
        name=theme.plain(label),
        customdata=_where(at),
        hovertemplate="layer %{x}: %{y:.4g}<br>%{customdata}<extra></extra>",
    )


def _where(at: xr.Dataset) -> list[str]:
    """Dimension, position, token and share of one rank in words, layer by layer."""
    names = ("dimension", "dimension_share", "position", "position_share", "top_token", "massive_share")
    return [
        f"dimension {dimension} ({100 * own:.0f} % of sequences)<br>position {position} ({100 * there:.0f} %)"
        f"<br>mostly token {theme.plain(token)!r}<br>{100 * massive:.0f} % of sequences have a massive activation"
        for dimension, own, position, there, token, massive in zip(*(at[name].values for name in names), strict=True)
    ]


def _losses(figure: go.Figure, ds: xr.Dataset) -> None:
    """Change of the loss under every method, with its interval."""
    change = only(ds, "loss_change", "method")
    value = change.values
    figure.add_scatter(
        x=[theme.plain(method) for method in change["method"].values],
        y=value,
        mode="markers",
        marker={
            "size": 10,
            "color": [theme.QUIET if "other" in str(name) else theme.TASKS[1] for name in ds["method"].values],
        },
        error_y={"array": ds["loss_change_high"].values - value, "arrayminus": value - ds["loss_change_low"].values},
        customdata=[
            f"{theme.plain(meaning)}<br>{count:.1f} a sequence, each moved by {moved:.3g}"
            for meaning, count, moved in zip(*(ds[n].values for n in ("meaning", "edited", "moved")), strict=True)
        ],
        hovertemplate="%{y:.4f} nats<br>%{customdata}<extra></extra>",
        showlegend=False,
        row=1,
        col=2,
    )
    zero = {"type": "line", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": 0, "y1": 0}
    figure.add_shape(line={"color": theme.QUIET, "dash": "dot", "width": 1}, **zero)
    figure.update_yaxes(title=f"change of the loss (nats; before: {float(ds.attrs['loss']):.3f})", row=1, col=2)
