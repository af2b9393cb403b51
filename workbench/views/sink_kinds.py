"""Which kinds of tokens the heads park their attention on."""

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import ViewError, heading, only, view
from workbench.views._strips import aside, by_task, level, named_heads, whiskers

BY_KIND = ("component", "layer", "head")
NULL = "uniform attention"


@view(
    requires={"layer", "head", "component"},
    variables={"kind_alpha", "kind_alpha_low", "kind_alpha_high", "kind_alpha_null", "kind_share"},
    about="Attention received by BOS, delimiters, white space, digits and content: every head, or layer by layer.",
)
def sink_kinds(ds: xr.Dataset, by: str = "kind") -> go.Figure:
    """Mean alpha of each kind of token, beside what uniform attention gives it.

    By `kind`: a dot a head, the strongest one named, with its interval. By `layer`: the strongest head of each layer,
    with its interval, a line a kind.
    """
    draw = {"kind": _by_kind, "layer": _by_layer}
    if by not in draw:
        raise ViewError(f"Cannot draw by '{by}'; use one of {', '.join(draw)}.")
    return draw[by](ds)


def _by_kind(ds: xr.Dataset) -> go.Figure:
    figure, parts = go.Figure(), by_task(ds)
    room = 0.8 / len(parts)
    for index, (task, part) in enumerate(parts.items()):
        middle = (index - (len(parts) - 1) / 2) * room
        _strip(figure, part, theme.plain(task), theme.TASKS[index % len(theme.TASKS)], (middle, room))
    level(figure, float(ds.attrs["epsilon"]), f"ε = {ds.attrs['epsilon']:g}")
    one = next(iter(parts.values())) if len(parts) == 1 else None
    kinds = [_kind(ds, place, one) for place in range(ds.sizes["component"])]
    title = f"Attention received by kind of token in {ds.attrs['model']}"
    notes = (f"a dot a head; named: the strongest, with its interval; line: {NULL}",)
    figure.update_layout(**heading(ds, title, *notes, height=430), legend={"orientation": "h", "y": -0.25})
    figure.update_xaxes(tickvals=list(range(len(kinds))), ticktext=kinds, showgrid=False, zeroline=False)
    figure.update_yaxes(title="mean alpha", rangemode="tozero")
    return figure


def _kind(ds: xr.Dataset, place: int, one: xr.Dataset | None) -> str:
    name = theme.plain(ds["component"].values[place])
    return name if one is None else f"{name}<br>{100 * float(one['kind_share'][place]):.2g} % of tokens"


def _strip(figure: go.Figure, part: xr.Dataset, task: str, colour: str, where: tuple[float, float]) -> None:
    """One task's dots over every kind, around `where[0]` and at most `where[1]` wide."""
    middle, room = where
    names = named_heads(part).ravel()
    alpha, low, high = (
        only(part, f"kind_alpha{end}", *BY_KIND).values.reshape(-1, names.size) for end in ("", "_low", "_high")
    )
    kinds = [theme.plain(kind) for kind in part["component"].values]
    for place, kind in enumerate(kinds):
        best, centre = int(alpha[place].argmax()), place + middle
        hover = [
            f"{name} on {kind} tokens of {task}: {value:.3f} ({least:.3f} to {most:.3f})"
            for name, value, least, most in zip(names, alpha[place], low[place], high[place], strict=True)
        ]
        figure.add_scatter(
            x=centre + aside(names.size, room * 0.5),
            y=alpha[place],
            mode="markers",
            marker={"size": 6, "color": colour, "opacity": 0.75},
            name=task,
            legendgroup=task,
            showlegend=not place,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
        )
        figure.add_scatter(
            x=[centre + room * 0.35],
            y=[alpha[place, best]],
            mode="markers+text",
            marker={"size": 9, "color": colour, "symbol": "diamond"},
            error_y=whiskers(alpha[place, [best]], low[place, [best]], high[place, [best]]),
            text=[f"{names[best]} {alpha[place, best]:.2f}"],
            textposition="top center",
            cliponaxis=False,
            showlegend=False,
            legendgroup=task,
            customdata=[hover[best]],
            hovertemplate="%{customdata}<extra></extra>",
        )
        _null(figure, (centre - room * 0.45, centre + room * 0.45), float(part["kind_alpha_null"][place]), not place)


def _null(figure: go.Figure, ends: tuple[float, float], value: float, shown: bool) -> None:
    figure.add_scatter(
        x=ends,
        y=[value, value],
        mode="lines",
        line={"color": theme.QUIET, "width": 3},
        name=NULL,
        legendgroup=NULL,
        showlegend=shown,
        hovertemplate=f"{NULL}: %{{y:.3f}}<extra></extra>",
    )


def _by_layer(ds: xr.Dataset) -> go.Figure:
    parts = by_task(ds)
    figure = make_subplots(
        cols=len(parts), shared_yaxes=True, subplot_titles=list(map(theme.plain, parts)), horizontal_spacing=0.04
    )
    for column, part in enumerate(parts.values(), 1):
        for place in range(part.sizes["component"]):
            _layers(figure, part, place, column)
        level(figure, float(ds.attrs["epsilon"]), f"ε = {ds.attrs['epsilon']:g}", str(column) if column > 1 else "")
    title = f"Attention received by kind of token, layer by layer, in {ds.attrs['model']}"
    notes = (f"the strongest head of each layer, with its interval; dashed: {NULL}",)
    figure.update_layout(**heading(ds, title, *notes, height=430, room=16), legend={"orientation": "h", "y": -0.25})
    figure.update_xaxes(title="layer", dtick=1 if ds.sizes["layer"] < 16 else None)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="mean alpha", col=1)
    return figure


def _layers(figure: go.Figure, part: xr.Dataset, place: int, column: int) -> None:
    """One kind's line: the strongest head of each layer."""
    alpha, low, high = (only(part, f"kind_alpha{end}", *BY_KIND).values[place] for end in ("", "_low", "_high"))
    best = alpha.argmax(1)
    values, least, most = (each[range(len(best)), best] for each in (alpha, low, high))
    kind, names = theme.plain(part["component"].values[place]), named_heads(part)[range(len(best)), best]
    colour = theme.TASKS[place % len(theme.TASKS)]
    share, null = float(part["kind_share"][place]), float(part["kind_alpha_null"][place])
    figure.add_scatter(
        x=part["layer"].values,
        y=values,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        error_y=whiskers(values, least, most),
        name=kind,
        legendgroup=kind,
        showlegend=column == 1,
        customdata=names,
        hovertemplate=f"{kind} ({100 * share:.2g} % of tokens), %{{customdata}}: %{{y:.3f}}<extra></extra>",
        row=1,
        col=column,
    )
    ends = part["layer"].values[[0, -1]]
    figure.add_scatter(
        x=ends,
        y=[null, null],
        mode="lines",
        line={"color": colour, "width": 1, "dash": "dash"},
        hovertemplate=f"{kind}, {NULL}: %{{y:.3f}}<extra></extra>",
        showlegend=False,
        legendgroup=kind,
        row=1,
        col=column,
    )
