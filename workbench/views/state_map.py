"""Which cells were kept, lost, gained or turned round, as a map of states."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.views._base import heading, view
from workbench.views._changes import COLOURS, NEEDED, STATES, counted, hover, table_of, title_of


@view(
    requires=set(),
    variables=set(NEEDED),
    about="Each head, expert or module as kept, lost, gained or flipped between two checkpoints.",
)
def state_map(ds: xr.Dataset, most: int = 60) -> go.Figure:
    """A map in one colour a state; of large results the `most` rows and columns with the largest changes."""
    table = table_of(ds, most)
    found = {name: table.of(ds[name]) for name in NEEDED}
    state = np.where(found["rank"] >= 0, found["state"].astype(float), np.nan)
    steps = len(STATES)
    scale = [[(place + end) / steps, colour] for place, colour in enumerate(COLOURS) for end in (0, 1)]
    said = [
        [
            hover(f"{row}, {column}", {name: float(values[i, j]) for name, values in found.items()})
            for j, column in enumerate(table.columns)
        ]
        for i, row in enumerate(table.rows)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=table.columns,
            y=table.rows,
            z=state,
            zmin=-0.5,
            zmax=steps - 0.5,
            colorscale=scale,
            colorbar={"tickvals": list(range(steps)), "ticktext": list(STATES), "thickness": 10},
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        )
    )
    notes = [
        counted(ds),
        f"present: {ds.attrs['threshold']:.3g} or more from its null; inside the noise: as before",
    ]
    notes += [f"{table.left_out:,} cells with smaller changes are not shown"] if table.left_out else []
    figure.update_layout(**heading(ds, title_of(ds), *notes, height=200 + max(130, 18 * len(table.rows))))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure
