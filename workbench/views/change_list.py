"""The largest changes between two checkpoints, each with its interval."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, view
from workbench.views._changes import COLOURS, NEEDED, STATES, counted, hover, ranked, title_of
from workbench.views._strips import whiskers

PALE = "#c3c7cd"  # of a dot that is neither before nor after


@view(
    requires=set(),
    variables=set(NEEDED),
    about="The heads, edges or experts that changed most, with simultaneous intervals; hollow: inside the noise.",
)
def change_list(ds: xr.Dataset, count: int = 20) -> go.Figure:
    """A dot and whiskers for each of the first `count` cells by rank, coloured by state."""
    cells = ranked(ds, count)
    figure = go.Figure()
    found = [(name, {key: float(ds[key].values[at]) for key in NEEDED}) for at, name in cells]
    for state, label in enumerate(STATES):
        part = [(name, numbers) for name, numbers in found if int(numbers["state"]) == state]
        if not part:
            continue
        values, low, high = (
            xr.DataArray([numbers[key] for _, numbers in part]).values
            for key in ("difference", "difference_low", "difference_high")
        )
        solid = [abs(numbers["difference"]) > numbers["band"] for _, numbers in part]
        colour = COLOURS[state] if state else PALE
        figure.add_scatter(
            x=values,
            y=[name for name, _ in part],
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": ["circle" if each else "circle-open" for each in solid]},
            error_x=whiskers(values, low, high),
            name=label,
            text=[hover(name, numbers) for name, numbers in part],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": theme.QUIET, "width": 1})
    notes = counted(ds), "whiskers: simultaneous 95 % intervals; hollow: inside the noise"
    figure.update_layout(**heading(ds, title_of(ds), *notes, height=190 + 22 * max(4, len(cells)), room=8))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.12})
    figure.update_xaxes(title=theme.plain(ds["difference"].attrs["long_name"]))
    order = [name for _, name in cells]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1], showgrid=True)
    return figure
