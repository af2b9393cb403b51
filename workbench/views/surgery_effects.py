"""What surgery on routing does: answer, loss and next tokens before and after, beside other experts edited so."""

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, pick, view
from workbench.views._strips import aside

MEASURES = ("metric", "probability", "loss")
ENDS = (
    "_change",
    "_change_low",
    "_change_high",
    "_change_null_low",
    "_change_null_high",
    "_change_p",
    "_change_random",
)
SIDES = ("before", "after")
LONGEST = 90  # letters of a text in the title


@view(
    requires={"measured", "seed", "size"},
    variables={*MEASURES, *(f"{name}{end}" for name in MEASURES for end in ENDS), "top_token", "top_probability"},
    about="Metric, answer, loss and likeliest next tokens before and after experts were muted, forced or re-weighed.",
)
def surgery_effects(ds: xr.Dataset, texts: bool = True) -> go.Figure:
    """A panel a measure, before, random experts and after; below, the likeliest next tokens of one prompt.

    `texts`: whether the title has that prompt and its continuations.
    """
    titles = [_titled(ds[name]) for name in MEASURES]
    table = [{"type": "domain", "colspan": 3}, None, None]
    figure = make_subplots(
        rows=2,
        cols=3,
        specs=[[{}, {}, {}], table],
        subplot_titles=titles,
        row_heights=[0.6, 0.4],
        vertical_spacing=0.12,
    )
    figure.update_annotations(font_size=13)
    for column, name in enumerate(MEASURES, 1):
        _panel(figure, ds, name, column)
    _tokens(figure, ds)
    said = [f"{name} {float(ds[f'{name}_change']):+.3g} (p = {float(ds[f'{name}_change_p']):.2g})" for name in MEASURES]
    notes = [f"mean over prompts, bars: 95 % interval of the change; {', '.join(said)}"]
    if texts:
        notes.append(_cut(ds.attrs["shown"]))
        notes += [f"{side}: … {_cut(ds.attrs[f'continuation_{side}'])}" for side in SIDES]
    title = f"Routing edited: {ds.attrs['edits']} · {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, *notes, height=660 if texts else 580, room=16), showlegend=False)
    ticks = ["before", f"random experts<br>({ds.sizes['seed']} draws)", "after"]
    figure.update_xaxes(tickvals=[0, 1, 2], ticktext=ticks, range=[-0.5, 2.5], showgrid=False, zeroline=False)
    return figure


def _titled(values: xr.DataArray) -> str:
    """A quantity with its units, where its name does not say them."""
    name, units = str(values.attrs["long_name"]), str(values.attrs["units"])
    return name.capitalize() if units in name else f"{name.capitalize()} ({units})"


def _panel(figure: go.Figure, ds: xr.Dataset, name: str, column: int) -> None:
    """Before and after, and between them where the same done to random other experts ends."""
    values = only(ds, name, "measured")
    before, after = (float(pick(values, measured=side)) for side in SIDES)
    low, high = (before + float(only(ds, f"{name}_change_null_{end}")) for end in ("low", "high"))
    own = [before + float(ds[f"{name}_change_{end}"]) for end in ("low", "high")]
    line = {"color": theme.QUIET, "width": 1}
    figure.add_shape(type="rect", x0=0.75, x1=1.25, y0=low, y1=high, fillcolor=theme.BAND, line=line, row=1, col=column)
    drawn = before + only(ds, f"{name}_change_random", "seed").values
    figure.add_scatter(
        x=1 + aside(len(drawn), 0.4),
        y=drawn,
        mode="markers",
        marker={"size": 6, "color": theme.QUIET, "opacity": 0.8},
        name=f"{name}, random experts",
        text=[theme.plain(label) for label in ds["control"].values] if "control" in ds.coords else None,
        hovertemplate="%{text}<br>%{y:.4f}<extra>random experts</extra>",
        row=1,
        col=column,
    )
    figure.add_hline(y=before, line={"color": theme.QUIET, "dash": "dot", "width": 1}, row=1, col=column)  # pyright: ignore
    for place, value, side, colour in ((0, before, "before", theme.TASKS[0]), (2, after, "after", theme.TASKS[1])):
        bars = {"array": [own[1] - value], "arrayminus": [value - own[0]], "width": 5} if side == "after" else None
        figure.add_scatter(
            x=[place],
            y=[value],
            mode="markers+text",
            marker={"size": 13, "color": colour, "symbol": "diamond"},
            error_y=bars,
            text=[f"{value:.3g}"],
            textposition="middle left" if place else "middle right",
            name=f"{name}, {side}",
            hovertemplate=f"{side}: %{{y:.4f}}<extra></extra>",
            row=1,
            col=column,
        )


def _tokens(figure: go.Figure, ds: xr.Dataset) -> None:
    """The likeliest next tokens of the prompt shown, before and after, with their probability."""
    tokens, likely = (only(ds, f"top_{name}", "measured", "size") for name in ("token", "probability"))
    columns = [[str(rank) for rank in ds["size"].values]]
    for side in SIDES:
        columns.append([_visible(token) for token in pick(tokens, measured=side).values])
        columns.append([f"{value:.4f}" for value in pick(likely, measured=side).values])
    names = ["", "next token before", "probability", "next token after", "probability"]
    line = {"color": theme.BAND}
    figure.add_trace(
        go.Table(
            header={"values": [f"<b>{name}</b>" for name in names], "fill": {"color": theme.BAND}, "line": line},
            cells={"values": columns, "fill": {"color": "rgba(0, 0, 0, 0)"}, "line": line, "height": 24},
            columnwidth=[1, 4, 3, 4, 3],
        ),
        row=2,
        col=1,
    )
    figure.update_traces(header={"align": "left"}, cells={"align": "left"}, selector={"type": "table"})


def _visible(token: object) -> str:
    """A token whose white space can be seen, as Plotly shows it unchanged."""
    text = str(token).replace("\n", "↵").replace("\t", "⇥")
    return theme.plain(text if text.strip() else "␣" * len(text))


def _cut(text: object) -> str:
    """The end of a text that is long."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= LONGEST else f"…{flat[-LONGEST:]}"
