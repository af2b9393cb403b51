"""Which task's loss leans on each place of the residual stream, and how evenly the tasks share it."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._experts import at_layer
from workbench.views._strips import whiskers
from workbench.views._training import model_of

SHARE = ("share", "share_low", "share_high", "share_null_low", "share_null_high")
ENTROPY = ("entropy", "entropy_low", "entropy_high", "entropy_null", "entropy_null_low")


@view(
    requires={"task", "layer", "pos"},
    variables={*SHARE, *ENTROPY},
    about="Share of every task in the loss gradient at each token, as stacked bars; below: entropy beside its null.",
)
def saliency_shares(ds: xr.Dataset, layer: int | None = None) -> go.Figure:
    """Stacked bars, a bar a token counted back from END, at the input of one `layer` (None: the last)."""
    part, chosen = at_layer(ds, layer)
    share = [only(part, name, "task", "pos").values for name in SHARE]
    seen, low, high, null, least = (only(part, name, "pos").values for name in ENTROPY)
    places = ["END" if pos == 0 else f"END{pos}" for pos in part["pos"].values]
    titles = ["Share of the tasks' saliency", "Entropy of the shares, 1 = all tasks alike"]
    figure = make_subplots(
        rows=2, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.12, subplot_titles=titles
    )
    figure.update_annotations(font_size=13)
    for row, name in enumerate(part["task"].values):
        values = [each[row] for each in share]
        figure.add_bar(
            x=places,
            y=values[0],
            name=theme.plain(name),
            marker_color=theme.TASKS[row % len(theme.TASKS)],
            customdata=[
                f"{theme.plain(name)}: {v:.2f} ({a:.2f} to {b:.2f})<br>tasks shuffled: {c:.2f} to {d:.2f}"
                for v, a, b, c, d in zip(*values, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            row=1,
            col=1,
        )
    quiet = {"mode": "lines", "line": {"color": theme.QUIET, "dash": "dot"}, "row": 2, "col": 1}
    figure.add_scatter(x=places, y=null, name="tasks shuffled", **quiet)
    figure.add_scatter(x=places, y=least, name="5 % of shuffles under", fill="tonexty", fillcolor=theme.BAND, **quiet)
    bars = whiskers(seen, np.minimum(low, seen), np.maximum(high, seen))
    figure.add_scatter(x=places, y=seen, error_y=bars, name="entropy", line={"color": theme.TASKS[5]}, row=2, col=1)
    scale = "each prompt's saliency sums to 1" if ds.attrs["scale"] == "unit" else "as large as each loss makes it"
    note = f"{scale} · grey: prompts given to tasks at random · channels: {_channels(part)}"
    title = f"Saliency of tasks at the input of layer {chosen}: {model_of(ds)}"
    figure.update_layout(**heading(ds, title, note, room=20, height=560, barmode="stack"))
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[0, 1], row=1, col=1)
    return figure


def _channels(part: xr.Dataset) -> str:
    if "channel_entropy" not in part:
        return "not measured"
    seen, null = float(part["channel_entropy"]), float(part["channel_entropy_null"])
    return f"entropy {seen:.3f}, shuffled {null:.3f}"
