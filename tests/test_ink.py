"""Words on coloured cells can be read on every colour, stand where they stood, and say what they said."""

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.colors import sample_colorscale

from workbench import theme
from workbench.views._ink import inked

Z = np.linspace(-1, 1, 201)[None]


def contrast(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """WCAG 2.2's ratio of two colours from 0 to 1, part by part as its definition has it."""

    def light(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    bright, dark = sorted((light(one), light(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_words_stand_out_from_every_colour_of_a_scale():
    cells = go.Heatmap(z=Z, texttemplate="%{z:.1f}", colorscale="Viridis", zmin=-1, zmax=1)
    _, words = inked(go.Figure(cells)).data
    grounds = sample_colorscale("Viridis", np.linspace(0, 1, 201), colortype="tuple")
    inks = [np.full(3, int(ink[1:3], 16) / 255) for ink in words.textfont.color]
    assert min(map(contrast, grounds, inks)) > 4.5
    assert len(set(words.textfont.color)) == 2


@pytest.mark.parametrize(("place", "ink"), [(-1, "#ffffff"), (0, "#000000"), (0.5, "#000000"), (1, "#ffffff")])
def test_the_ends_of_a_diverging_scale_take_white_and_its_middle_black(place, ink):
    cells = go.Heatmap(z=[[place]], text=[["a"]], texttemplate="%{text}", colorscale=theme.DIVERGING, zmin=-1, zmax=1)
    assert inked(go.Figure(cells)).data[1].textfont.color == (ink,)


def test_words_stay_where_they_were_and_say_the_same():
    text = [["a", ""], ["b", "c"]]
    cells = go.Heatmap(
        z=[[1, 2], [np.nan, 4]],
        x=["p", "q"],
        y=["r", "s"],
        text=text,
        texttemplate="%{z:.2f}<br>%{text}",
        colorscale="Viridis",
        xaxis="x2",
    )
    figure = inked(go.Figure(cells))
    words = figure.data[1]
    assert (*words.x, *words.y, *words.text) == ("p", "q", "r", "s", "a", "c")  # none where there is no number or word
    assert words.texttemplate == "%{customdata:.2f}<br>%{text}" and list(words.customdata) == [1, 4]
    assert words.xaxis == "x2" and words.hoverinfo == "skip" and figure.data[0].texttemplate is None
    assert len(inked(figure).data) == 2


def test_on_colours_the_page_shines_through_words_have_the_page_s_ink():
    faint = [[0, "rgba(103, 169, 207, 0.08)"], [1, "rgba(103, 169, 207, 0.75)"]]
    cells = go.Heatmap(z=[[1, 2]], text=[["a", "b"]], texttemplate="%{text}", colorscale=faint, textfont={"size": 9})
    words = inked(go.Figure(cells)).data[1]
    assert words.textfont.color is None and words.textfont.size == 9
