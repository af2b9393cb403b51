"""At which stage of its MLP a secondary sink turns towards the primary, beside tokens that do not."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._strips import whiskers

NAMES = ("alignment", "alignment_low", "alignment_high")


@view(
    requires={"measured", "module"},
    variables={*NAMES, "alignment_n"},
    about="Cosine to the primary sink at each stage of the MLP that makes the sinks, beside control tokens.",
)
def stage_alignment(ds: xr.Dataset) -> go.Figure:
    """Points with their intervals, a pair a stage: secondary sinks and controls."""
    mean, low, high = (only(ds, name, "measured", "module") for name in NAMES)
    count = only(ds, "alignment_n", "measured")
    stages = [theme.plain(name) for name in ds["module"].values]
    figure = go.Figure()
    figure.add_hline(y=0, line={"color": theme.QUIET, "width": 1})
    styles = {"sink": (theme.TASKS[0], "circle", "secondary sinks"), "control": (theme.QUIET, "diamond", "controls")}
    for aside, (group, (colour, symbol, name)) in zip((-0.1, 0.1), styles.items(), strict=True):
        at, tokens = mean.sel(measured=group).values, int(count.sel(measured=group))
        if not tokens:
            continue
        figure.add_scatter(
            x=[place + aside for place in range(len(stages))],
            y=at,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            error_y=whiskers(at, low.sel(measured=group).values, high.sel(measured=group).values),
            name=f"{name} ({tokens})",
            text=stages,
            hovertemplate=f"{name}, %{{text}}: %{{y:.3f}}<extra></extra>",
        )
    title = f"Alignment with the primary sink, stage by stage: {ds.attrs['task']}, {ds.attrs['model']}"
    figure.update_layout(**heading(ds, title, *_notes(ds), height=430))
    figure.update_layout(showlegend=True)
    figure.update_xaxes(tickvals=list(range(len(stages))), ticktext=stages, range=[-0.5, len(stages) - 0.5])
    figure.update_xaxes(title="stage of the MLP in the layer that makes the sink", zeroline=False)
    figure.update_yaxes(title="cosine to the primary sink", range=[-1.05, 1.05])
    return figure


def _notes(ds: xr.Dataset) -> list[str]:
    said = [f"controls: {ds.attrs['controls']}"]
    return said if int(ds["alignment_n"].sel(measured="sink")) else ["no secondary sink, so there is nothing to align"]
