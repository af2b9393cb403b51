"""What the tokens taken from a map are, beside what all of its tokens are."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from widgets.token_map import Colouring
from workbench import theme
from workbench.views._base import ViewError, heading, view, visible
from workbench.views._token_labels import AT, labels

MOST = 12  # bars of one label


@view(
    requires=set(AT),
    variables={"x", "y"},
    about="Experts, tasks, kinds and words of the tokens taken from a map, beside those of all its tokens.",
)
def token_selection(ds: xr.Dataset, selected: Sequence[int] | np.ndarray = ()) -> go.Figure:
    """Shares among the tokens `selected` (numbers counted prompt by prompt; none: all) beside chance.

    Chance is the share among all tokens, with the range of 95 % of random selections as large.
    """
    texts, codes = np.unique(ds["token"].transpose(*AT).values.ravel().astype(str), return_inverse=True)
    taken = np.unique(np.asarray(selected, dtype=np.int64))
    if len(taken) and not 0 <= taken[0] <= taken[-1] < len(codes):
        raise ViewError(f"The tokens are numbered 0 to {len(codes) - 1}; {taken[0]} to {taken[-1]} were selected.")
    words = Colouring("token", codes, [visible(text) for text in texts])
    panels = [*labels(ds), words]
    rows, names = (len(panels) + 1) // 2, [each.name for each in panels]
    figure = make_subplots(rows, 2, subplot_titles=names, horizontal_spacing=0.22, vertical_spacing=0.16)
    for place, each in enumerate(panels):
        for trace in _bars(each, taken, first=place == 0):
            figure.add_trace(trace, 1 + place // 2, 1 + place % 2)
    what = f"{len(taken):,} of {len(codes):,} tokens selected" if len(taken) else f"all {len(codes):,} tokens"
    layout = heading(ds, str(ds.attrs["title"]), what, room=24, height=130 + 230 * rows)
    figure.update_layout(**layout, legend={"orientation": "h", "y": -0.1, "x": 0})
    figure.update_xaxes(rangemode="tozero", tickformat=".0%")
    return figure.update_yaxes(autorange="reversed", dtick=1)


def _bars(each: Colouring, taken: np.ndarray, *, first: bool) -> list[go.Bar | go.Scatter]:
    """The largest shares among those taken, and the range of chance."""
    codes = np.asarray(each.codes)
    every = np.bincount(codes, minlength=len(each.names)) / len(codes)
    own = np.bincount(codes[taken], minlength=len(each.names)) / len(taken) if len(taken) else every
    order = np.argsort(-own, kind="stable")[:MOST]
    order = order[np.maximum(own, every)[order] > 0]
    count = len(taken) or len(codes)
    spread = 1.96 * np.sqrt(every * (1 - every) / count * (len(codes) - count) / max(len(codes) - 1, 1))
    names = [f"{theme.plain(each.names[code])} " for code in order]
    bars = go.Bar(x=own[order], y=names, orientation="h", marker_color=theme.TASKS[0], name="selected")
    chance = go.Scatter(x=every[order], y=names, mode="markers", name="all tokens, 95 % of random selections")
    chance.update(marker={"color": theme.TASKS[4], "symbol": "line-ns-open", "size": 12})
    chance.update(error_x={"type": "data", "array": spread[order], "color": theme.TASKS[4]})
    return [trace.update(showlegend=first) for trace in (bars, chance)]
