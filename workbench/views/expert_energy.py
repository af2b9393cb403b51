"""How many directions an expert's weights use: the energy that the largest r singular values retain."""

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench import theme
from workbench.models.expert_names import expert_name
from workbench.views._base import heading, only, view
from workbench.views._experts import at_layer, colour


@view(
    requires={"layer", "expert", "module", "size"},
    variables={"energy", "energy_null", "rank", "rank_null"},
    about="Energy retained at each rank by the weights of one layer's experts, beside a normal matrix of that shape.",
)
def expert_energy(ds: xr.Dataset, layer: int | None = None) -> go.Figure:
    """A panel a weight matrix of one `layer` (None: the last), a line an expert; grey: a normal matrix."""
    part, chosen = at_layer(ds, layer)
    modules = [theme.plain(name) for name in part["module"].values]
    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, shared_xaxes=True, subplot_titles=modules)
    figure.update_annotations(font_size=12)
    energy, rank = only(part, "energy", "module", "expert", "size"), only(part, "rank", "module", "expert")
    null, null_rank = only(part, "energy_null", "module", "size").values, only(part, "rank_null", "module").values
    for place in range(len(modules)):
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        for row, expert in enumerate(int(expert) for expert in part["expert"].values):
            name = expert_name(chosen, expert)
            _line(figure, energy[place, row], name, colour(expert), float(rank[place, row]), where)
        _line(figure, xr.zeros_like(energy[place, 0]) + null[place], "normal", theme.QUIET, null_rank[place], where)
    title = f"Energy retained by rank, experts of layer {chosen}: {ds.attrs['model']}"
    note = "share of the squared singular values in the largest r; grey: a normal matrix of the same shape"
    figure.update_layout(**heading(ds, title, note, room=20, height=600))
    figure.update_xaxes(type="log")
    figure.update_xaxes(title="rank r", row=2)
    figure.update_yaxes(title="energy, share", range=[0, 1.02], col=1)
    return figure


def _line(figure: go.Figure, energy: xr.DataArray, name: str, hue: str, rank: float, where: dict) -> None:
    figure.add_scatter(
        x=energy["size"].values,
        y=energy.values,
        mode="lines+markers",
        line={"color": hue, "width": 1.5, "dash": "dot" if name == "normal" else "solid"},
        marker={"size": 4},
        name=name,
        legendgroup=name,
        showlegend=where == {"row": 1, "col": 1},
        hovertemplate=f"{name}: %{{y:.3f}} at rank %{{x}}<br>effective rank {rank:.1f}<extra></extra>",
        **where,
    )
