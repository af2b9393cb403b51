"""What the view of directions through the MLP draws: the dataset's own numbers, and random directions beside them."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.views import ViewError, compatible, show


def lines(figure, label, axis):
    return next(trace for trace in figure.data if trace.name.startswith(label) and trace.yaxis == axis)


def expected(ds, name, label):
    """Values at -alpha from the largest on, a gap, and those at alpha."""
    here = ds[name].sel(component=label)
    return [*here.sel(measured="-").values[::-1], None, *here.sel(measured="+").values]


def test_it_is_the_view_of_such_a_result():
    assert compatible(synthetic.pushed()) == ["sink_directions_plot"]


@pytest.mark.parametrize("to", ["block output", "MLP output"])
def test_every_direction_has_its_cosines_and_norms_over_alpha(to):
    ds = synthetic.pushed()
    figure = show(ds, "sink_directions_plot", to=to)
    for label, name in (("mean", "mean (its own α 0.90)"), ("PC1<b>", "PC1&lt;b&gt; (41 %, SD 0.30)")):
        for axis, variable in (("y", "cosine"), ("y2", "norm")):
            line = lines(figure, name, axis)
            assert list(line.x) == [-1.0, -0.5, None, 0.5, 1.0]
            assert list(line.y) == expected(ds.sel(module=to), variable, label)
    assert figure.layout.yaxis.title.text.endswith(to) and "<b>" not in str(figure.to_dict())


def test_random_directions_and_the_sinks_themselves_are_beside():
    ds = synthetic.pushed()
    figure = show(ds)
    for axis, name in (("y", "cosine"), ("y2", "norm")):
        bands = [trace for trace in figure.data if trace.name.startswith("random") and trace.yaxis == axis]
        low, high = (ds[f"{name}_null_{end}"] for end in ("low", "high"))
        if name == "cosine":
            low, high = low.sel(module="block output"), high.sel(module="block output")
        for band, side in zip(bands, (-1, 1), strict=True):
            np.testing.assert_allclose(band.x, side * np.array([0.5, 1.0, 1.0, 0.5]))
            np.testing.assert_allclose(band.y, [*low.values, *high.values[::-1]])
    assert [shape.y0 for shape in figure.layout.shapes] == [0.9, 5.0]
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert len(shown) == 3 and len(set(shown)) == 3


def test_the_title_says_which_tokens_and_which_layer():
    title = show(synthetic.pushed()).layout.title.text
    assert "through MLP 1" in title and "7 sinks (any) created in layer 1; sink: &lt;i&gt;near" in title
    assert "of the sinks and others (12 tokens), mean taken out" in title


def test_another_reference_and_a_joined_result_are_refused():
    ds = synthetic.pushed()
    with pytest.raises(ViewError, match="no cosine to 'BOS'; this result has those to: block output, MLP output"):
        show(ds, to="BOS")
    with pytest.raises(ViewError, match="select it first"):
        show(ds.expand_dims(checkpoint=[0, 1]))
