"""Two fine-tunes with the same data, task by task: how far the second is ahead, seed by seed and in the mean."""

import plotly.graph_objects as go
import xarray as xr

from workbench import theme
from workbench.views._base import heading, only, view
from workbench.views._strips import aside, level, whiskers

ENDS = ("", "_low", "_high")


@view(
    requires={"task", "seed", "method"},
    variables={f"{name}{end}" for name in ("accuracy_change", "difference") for end in ENDS},
    about="Accuracy of one fine-tune less another on the same rows: the mean with its interval, and every seed.",
)
def paired_differences(ds: xr.Dataset) -> go.Figure:
    """A dot with its interval for each task, pale ones beside it for the seeds."""
    names = [theme.plain(name) for name in ds["task"].values]
    values, low, high = (only(ds, f"difference{end}", "seed", "task").values for end in ENDS)
    figure = go.Figure()
    for place, shift in enumerate(aside(len(values), 0.4)):
        figure.add_scatter(
            x=[at + 0.15 + float(shift) / 2 for at in range(len(names))],
            y=values[place],
            mode="markers",
            marker={"size": 7, "color": theme.QUIET},
            error_y=whiskers(values[place], low[place], high[place]),
            opacity=0.5,
            name="one seed, over held-out rows",
            legendgroup="seed",
            showlegend=place == 0,
            hovertemplate=f"seed {ds['seed'].values[place]}: %{{y:+.3f}}<extra></extra>",
        )
    mean, low, high = (only(ds, f"accuracy_change{end}", "task").values for end in ENDS)
    figure.add_scatter(
        x=[at - 0.15 for at in range(len(names))],
        y=mean,
        mode="markers",
        marker={"size": 11, "color": theme.TASKS[0]},
        error_y=whiskers(mean, low, high),
        name=f"mean, {ds.attrs['interval']}",
        text=names,
        hovertemplate="%{text}: %{y:+.3f}<extra></extra>",
    )
    level(figure, 0)
    figure.update_layout(**heading(ds, ds.attrs["title"], "above 0: the second is better", height=400))
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.15})
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False, zeroline=False)
    figure.update_yaxes(title="change of accuracy")
    return figure
