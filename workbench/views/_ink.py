"""Words on coloured cells, in the ink that stands out from each."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import validate_colors

INKS = ("#000000", "#ffffff")
EVEN = np.sqrt(0.05 * 1.05) - 0.05  # the luminance from which both stand out alike, 4.58 to 1


def inked(figure: go.Figure) -> go.Figure:
    """The figure, with the words in the cells of its heat maps in black or white, whichever stands out more.

    Plotly's own grey stands out less than 4.5 to 1 from colours of medium tone (WCAG 2.2, 1.4.3). Words on colours that
    the page shines through are left in the page's ink.
    """
    for trace in figure.data:
        if isinstance(trace, go.Heatmap) and trace.texttemplate and trace.colorscale:
            figure.add_trace(_words(trace))
            trace.texttemplate = None
    return figure


def _words(trace: Any) -> go.Scatter:
    z = np.asarray(trace.z, float)
    text = np.full(z.shape, " ", object) if trace.text is None else np.asarray(trace.text, object)
    rows, columns = np.nonzero(np.isfinite(z) & (text != ""))
    across, down = (np.arange(n) if of is None else of for of, n in zip((trace.x, trace.y), z.T.shape, strict=True))
    shown = z[rows, columns]
    font: dict[str, Any] = {"size": trace.textfont.size}
    if not any("rgba" in colour for _, colour in trace.colorscale):
        font["color"] = _inks(shown, trace)
    return go.Scatter(
        x=[across[at] for at in columns],
        y=[down[at] for at in rows],
        mode="text",
        text=text[rows, columns],
        customdata=shown,
        texttemplate=trace.texttemplate.replace("%{z", "%{customdata"),
        textfont=font,
        xaxis=trace.xaxis,
        yaxis=trace.yaxis,
        hoverinfo="skip",
        showlegend=False,
    )


def _inks(values: np.ndarray, trace: Any) -> list[str]:
    low = np.min(values) if trace.zmin is None else trace.zmin
    high = np.max(values) if trace.zmax is None else trace.zmax
    places, scale = (values - low) / ((high - low) or 1), trace.colorscale
    stops = np.array([validate_colors(colour, "tuple")[0] for _, colour in scale])
    colours = [np.interp(places, [at for at, _ in scale], part) for part in stops.T]
    return [INKS[int(light < EVEN)] for light in _light(np.stack(colours, -1))]


def _light(colours: np.ndarray) -> np.ndarray:
    """Relative luminance (WCAG 2.2) of colours [..., 3] from 0 to 1."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
