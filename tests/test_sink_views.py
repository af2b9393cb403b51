"""What the views of attention sinks draw: the dataset's own numbers, their intervals and nulls, names as they are."""

import json
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from workbench.schema import concat
from workbench.views import ViewError, compatible, show
from workbench.views.sink_map import EACH, NAMED, WIDEST

HEADS = [f"L{layer}H{head}" for layer in range(synthetic.LAYERS) for head in range(synthetic.HEADS)]
RESULTS = {
    "sink_kinds": synthetic.sinks,
    "sink_norms": synthetic.sinks,
    "sink_map": synthetic.sinks,
    "sink_rate": synthetic.sinks,
    "sink_emergence": synthetic.growing_sinks,
    "first_tokens": synthetic.averages,
    "sink_before_after": synthetic.unsunk,
}


def both() -> xr.Dataset:
    """Sink scores of two tasks; the second's are a tenth lower."""
    second = synthetic.sinks()
    for name in list(second.data_vars):
        if second[name].dtype.kind == "f":
            second[name] = second[name] * 0.9
    return concat({synthetic.TASKS[0]: synthetic.sinks(), synthetic.TASKS[1]: second}, "task")


def long_text(length: int) -> xr.Dataset:
    """One sequence with a sink at two positions, in head 1 of layer 0 and head 0 of layer 1."""
    alpha = np.full((1, 2, 2, length), 0.01)
    alpha[0, 0, 1, 0], alpha[0, 1, 0, length - 20] = 0.9, 0.7
    coords = {"prompt": [0], "layer": [0, 1], "head": [0, 1], "key_pos": range(length)}
    tokens = np.array([["<bos>", *(f"t{place}" for place in range(1, length))]])
    coords["token"] = (("prompt", "key_pos"), tokens)
    variables = {"alpha_prompt": (("prompt", "layer", "head", "key_pos"), alpha)}
    return synthetic.finish(variables, coords, "alpha_prompt", epsilon=0.3, length=length)


def written(figure: go.Figure) -> str:
    return json.dumps(figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist())


def drawn(figure: go.Figure) -> list[list]:
    return [np.asarray(trace.y, dtype=object).tolist() for trace in figure.data]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_with_a_dimension_too_many_is_refused(name):
    ds = RESULTS[name]()
    with pytest.raises(ViewError, match="select"):
        show(ds.expand_dims(expert=[0, 1]), name)


@pytest.mark.parametrize("name", RESULTS)
def test_names_and_tokens_are_shown_as_they_are_written(name):
    ds = RESULTS[name]().assign_attrs(model="<script>model", task="<b>task")
    text = written(show(ds, name))
    for markup in ("<script>", "<b>", "<i>", "<bos>"):
        assert markup not in text
    assert "&lt;script&gt;model" in text


@pytest.mark.parametrize("token", ["<img src=x onerror=alert(1)>", "&amp;", "\n", "  ", "\u202e", "%{x}", "x" * 500])
def test_a_hostile_token_is_text(token):
    ds = long_text(30)
    tokens = ds["token"].values.copy().astype(object)
    tokens[0, 3] = token
    figure = show(ds.assign_coords(token=(("prompt", "key_pos"), tokens.astype(str))), "sink_map")
    label = figure.layout.xaxis.ticktext[3]
    assert "<" not in label and len(label) < 80 and label.strip()
    assert figure.data[0].customdata[0][3].startswith("3 ")


def test_every_head_is_a_dot_of_each_kind_beside_the_null():
    ds = synthetic.sinks()
    figure = show(ds, "sink_kinds")
    for place in range(2):
        values = ds["kind_alpha"].values[..., place].ravel()
        dots = figure.data[3 * place]
        np.testing.assert_allclose(dots.y, values)
        assert all(abs(x - place) < 0.5 for x in dots.x)
        assert [text.split(" ")[0] for text in dots.customdata] == HEADS
        named = figure.data[3 * place + 1]
        assert named.text == (f"{HEADS[values.argmax()]} {values.max():.2f}",)
        np.testing.assert_allclose(named.y[0] + named.error_y.array, ds["kind_alpha_high"].values[..., place].max())
        np.testing.assert_allclose(figure.data[3 * place + 2].y, [ds["kind_alpha_null"][place]] * 2)
    assert figure.layout.xaxis.ticktext == ("BOS<br>25 % of tokens", "&lt;i&gt;content<br>75 % of tokens")
    assert [shape.y0 for shape in figure.layout.shapes] == [0.3]


@pytest.mark.parametrize("by", ["kind", "layer"])
def test_the_kinds_of_two_tasks_are_side_by_side(by):
    ds = both()
    figure = show(ds, "sink_kinds", by=by)
    for task in (0, 1):
        values = ds["kind_alpha"].isel(task=task, component=1)
        expected = values.values.ravel() if by == "kind" else values.max("head").values
        assert any(np.shape(y) == expected.shape and np.allclose(y, expected) for y in map(np.array, drawn(figure)))


def test_the_strongest_head_of_each_layer_has_its_interval():
    ds = synthetic.sinks()
    figure = show(ds, "sink_kinds", by="layer")
    line, null = figure.data[0], figure.data[1]
    best = ds["kind_alpha"].isel(component=0).argmax("head").values
    np.testing.assert_allclose(line.y, ds["kind_alpha"].values[[0, 1], best, 0])
    np.testing.assert_allclose(line.y - line.error_y.arrayminus, ds["kind_alpha_low"].values[[0, 1], best, 0])
    assert list(line.customdata) == [f"L{layer}H{head}" for layer, head in enumerate(best)]
    np.testing.assert_allclose(null.y, [0.3, 0.3])
    with pytest.raises(ViewError, match="by 'head'; use one of kind, layer"):
        show(ds, "sink_kinds", by="head")


def test_the_norms_of_a_sink_stand_beside_those_of_another_position():
    ds = synthetic.sinks()
    figure = show(ds, "sink_norms", key=0, beside=2)
    for column, name in enumerate(("residual_norm", "value_norm", "key_norm", "query_key_cosine")):
        other, own = figure.data[2 * column : 2 * column + 2]
        values = ds[name].transpose(..., "key_pos").values
        np.testing.assert_allclose(own.y, values[..., 0].ravel())
        np.testing.assert_allclose(other.y, values[..., 2].ravel())
    np.testing.assert_allclose(figure.data[3].marker.color, ds["alpha"].values[..., 0].ravel())
    assert [shape.y0 for shape in figure.layout.shapes] == [1, 1, 1, 0]
    assert "BOS" in figure.layout.title.text and "position 2, for comparison" in figure.layout.title.text
    with pytest.raises(ViewError, match="no key_pos 9"):
        show(ds, "sink_norms", key=9)


def test_heads_come_to_rest_in_the_order_of_training():
    ds = synthetic.growing_sinks()
    figure = show(ds, heads=2)
    order = [0, 2, 1]
    rate = figure.data[0]
    assert list(rate.x) == [0, 100, 900]
    np.testing.assert_allclose(rate.y, ds["sink_rate_mean"].values[order, 0])
    np.testing.assert_allclose(rate.y + rate.error_y.array, ds["sink_rate_mean_high"].values[order, 0])
    alpha = ds["alpha"].values[order, ..., 0].reshape(3, -1)
    strongest = np.argsort(-alpha.max(0), kind="stable")[:2]
    lines = [trace for trace in figure.data if trace.error_y.array is not None][1:]
    assert [line.name for line in lines] == [HEADS[place] for place in strongest]
    for line, place in zip(lines, strongest, strict=True):
        np.testing.assert_allclose(line.y, alpha[:, place])
        low = ds["alpha_low"].values[order, ..., 0].reshape(3, -1)[:, place]
        np.testing.assert_allclose(line.y - line.error_y.arrayminus, low)
    assert figure.data[-1].name == "uniform attention: 0.25" and list(figure.data[-1].y) == [0.25, 0.25]
    assert len(figure.data) == 2 + len(HEADS)


def test_a_sink_rate_by_layer_is_the_mean_of_its_heads():
    ds = both()
    figure = show(ds, "sink_rate", by="layer", key=1)
    for task in (0, 1):
        dots, line = figure.data[2 * task : 2 * task + 2]
        rate = ds["sink_rate"].isel(task=task, key_pos=1).transpose("layer", "head").values
        np.testing.assert_allclose(dots.y, rate.ravel())
        np.testing.assert_allclose(line.y, rate.mean(1))
        assert list(dots.customdata) == HEADS
    with pytest.raises(ViewError, match="by 'head'; use one of position, layer"):
        show(ds, "sink_rate", by="head")
    with pytest.raises(ViewError, match="no sink rate by layer"):
        show(ds.drop_dims("head"), "sink_rate", by="layer")


def test_the_controls_are_said_above_the_sink_rate():
    title = show(both(), "sink_rate").layout.title.text
    assert "text 0.91, random tokens 0.52, one repeated token 0.13" in title
    assert "another: text 0.82, random tokens 0.47, one repeated token 0.12" in title
    assert "random" not in show(synthetic.sinks().drop_vars("control_rate"), "sink_rate").layout.title.text


def test_many_positions_have_a_band_instead_of_bars():
    rate = np.linspace(0.9, 0.1, 300)
    names = {"sink_rate_mean": rate, "sink_rate_mean_low": rate - 0.1, "sink_rate_mean_high": rate + 0.1}
    coords = {"key_pos": range(300)}
    ds = synthetic.finish(
        {n: ("key_pos", v) for n, v in names.items()}, coords, "sink_rate_mean", epsilon=0.3, length=300
    )
    low, high, line = show(ds, "sink_rate").data
    for trace, values in ((low, rate - 0.1), (high, rate + 0.1), (line, rate)):
        np.testing.assert_allclose(trace.y, values)
    assert line.error_y.array is None and high.fill == "tonexty"


@pytest.mark.parametrize("length", [EACH, EACH + 1, WIDEST, WIDEST + 1, 4000])
def test_no_sink_is_lost_in_a_long_sequence(length):
    ds = long_text(length)
    figure = show(ds, "sink_map")
    (cells,) = figure.data
    z, labels = np.array(cells.z), list(figure.layout.xaxis.ticktext)
    assert z.shape[1] <= WIDEST and z[0].max() == 0.9 and z[1].max() == 0.7
    group = -(-length // WIDEST)
    assert cells.customdata[1][(length - 20) // group] == f"{length - 20} t{length - 20}<br>L1H0"
    np.testing.assert_allclose(cells.x, np.arange(z.shape[1]) * group)
    if length > EACH:
        assert len(labels) <= NAMED and {"0 &lt;bos&gt;", f"{length - 20} t{length - 20}"} <= set(labels)
        assert min(np.diff(figure.layout.xaxis.tickvals)) >= length / 60
    else:
        assert len(labels) == length


def test_a_map_of_one_head_is_that_heads():
    ds = long_text(1000)
    (cells,) = show(ds, "sink_map", head=0).data
    assert np.array(cells.z)[0].max() == 0.01 and np.array(cells.z)[1].max() == 0.7
    with pytest.raises(ViewError, match="no head 5"):
        show(ds, "sink_map", head=5)


@pytest.mark.parametrize(
    "variable", ["alpha", "sink_rate", "value_norm", "key_norm", "query_key_cosine", "output_norm"]
)
def test_a_head_grid_holds_the_quantity_asked_for(variable):
    ds = synthetic.sinks()
    grid = show(ds, "sink_heads", key=1, variable=variable)
    at = ds[variable].isel(key_pos=1) if "key_pos" in ds[variable].dims else ds[variable]
    np.testing.assert_allclose(np.frombuffer(grid.values, "<f4"), at.values.ravel(), rtol=1e-6)
    assert list(grid.marks) == (ds["alpha"].isel(key_pos=1).values > 0.3).astype(int).ravel().tolist()
    assert ("position 1" in grid.quantity) == (variable != "output_norm")


def test_a_head_grid_may_be_of_a_kind_of_token():
    ds = synthetic.sinks()
    grid = show(ds, "sink_heads", kind="BOS")
    for trait, name in (("values", "kind_alpha"), ("low", "kind_alpha_low"), ("high", "kind_alpha_high")):
        found = np.frombuffer(getattr(grid, trait), "<f4")
        np.testing.assert_allclose(found, ds[name].values[..., 0].ravel(), rtol=1e-6)
    assert "uniform attention gives 0.30" in grid.quantity
    for problem, wrong in (("no component digit", {"kind": "digit"}), ("Cannot draw 'beta'", {"variable": "beta"})):
        with pytest.raises(ViewError, match=problem):
            show(ds, "sink_heads", **wrong)
    with pytest.raises(ViewError, match="no kinds of tokens"):
        show(ds.drop_vars("kind_alpha"), "sink_heads", kind="BOS")


def test_first_tokens_shows_the_heads_that_look_most_at_the_first():
    ds = synthetic.averages()
    figure = show(ds)
    titles = [text.text for text in figure.layout.annotations]
    assert titles[1].startswith("L1H2 · 1.00 on the first") and len(figure.data) == synthetic.LAYERS
    below = np.tril(np.ones((synthetic.KEYS, synthetic.KEYS), bool))
    z = np.array(figure.data[1].z, dtype=float)
    np.testing.assert_allclose(z[below], ds["score"].values[1, 2][below])
    assert np.isnan(z[~below]).all()
    np.testing.assert_allclose(np.array(figure.data[1].customdata)[below], ds["score_sd"].values[1, 2][below])
    every = show(ds.assign_attrs(causal=0), variable="pattern", heads="L0H1")
    np.testing.assert_allclose(np.array(every.data[0].z, dtype=float), ds["pattern"].values[0, 1])


def test_first_tokens_shows_the_heads_named_and_more_if_asked():
    ds = synthetic.averages()

    def names(**options: object) -> list[str]:
        return [text.text.split(" ")[0] for text in show(ds, **options).layout.annotations]

    assert names(heads="L0H1, L1H0,L0H1") == ["L0H1", "L1H0"]
    assert names(heads="L0H1", more=True)[0] == "L0H1" and "L1H2" in names(heads="L0H1", more=True)
    for problem, wrong in (
        ("no layer 7", {"heads": "L7H0"}),
        ("up to 8", {"heads": ",".join(f"L0H{n}" for n in range(9))}),
        ("Cannot draw 'z'", {"variable": "z"}),
    ):
        with pytest.raises(ViewError, match=problem):
            show(ds, **wrong)


def test_before_and_after_stand_beside_the_control():
    ds = synthetic.unsunk()
    figure = show(ds, "sink_before_after")
    for index, kind in enumerate(ds["component"].values):
        band, *lines = figure.data[4 * index : 4 * index + 4]
        at = ds.sel(component=kind)
        for line, name in zip(lines, ("loss", "score", "lifetime"), strict=True):
            np.testing.assert_allclose(line.y, at[name])
        ends = [float(at["loss"][0] + at[f"loss_change_null_{end}"]) for end in ("low", "high")]
        np.testing.assert_allclose(band.y, ends)


def test_dormant_and_active_heads_are_marked():
    ds = synthetic.resting(task=True)
    assert compatible(ds)[:2] == ["dormancy", "dormancy_heads"]
    grid = show(ds, "dormancy_heads")
    np.testing.assert_allclose(np.frombuffer(grid.values, "<f4"), ds["dormancy"].values.ravel(), rtol=1e-6)
    state = ds["state"].values.ravel()
    assert list(grid.marks) == [{1: 1, 2: 2}.get(int(value), 0) for value in state]
    assert grid.titles == synthetic.TASKS and "uniform attention gives 0.07" in grid.quantity
    assert show(synthetic.resting(), "dormancy_heads").shape == [1, synthetic.LAYERS, synthetic.HEADS]
