"""What the token map accepts and how it packs points, and its two views, without a browser."""

import json
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import traitlets as T

sys.path.insert(0, str(Path(__file__).parent / "contracts"))

import synthetic

from widgets import TokenMap, token_map
from widgets.token_map import MOST, Colouring, pack, palette
from workbench.app.hosting import panelize
from workbench.views import VIEWS, ViewError, show

X, Y = [0.0, 1.0, 2.5], [1.0, -1.0, 0.5]
EXPERT = Colouring("expert", [0, 1, 1], ["E0", "E1"])
TASK = Colouring("task", np.array([2, 0, 2]), ["a", "b", "<b>c"], ["#111111", "#222222", "#333333"])


def packed(**more) -> dict:
    return pack(X, Y, [EXPERT, TASK], texts=["a", " b"], text_codes=[1, 0, 1]) | more


def test_packed_points_are_little_endian_and_of_one_kind_after_the_other() -> None:
    traits = packed()
    np.testing.assert_array_equal(np.frombuffer(traits["points"], "<f4"), [*X, *Y])
    np.testing.assert_array_equal(np.frombuffer(traits["codes"], "<u2"), [0, 1, 1, 2, 0, 2])
    np.testing.assert_array_equal(np.frombuffer(traits["text_codes"], "<u4"), [1, 0, 1])
    assert traits["colours"] == [palette(2), ["#111111", "#222222", "#333333"]]
    assert (traits["colour_by"], traits["names"][1]) == ("expert", ["a", "b", "<b>c"])
    assert pack(X, Y, [EXPERT])["text_codes"] == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [np.nan], [Colouring("a", [0], ["x"])]), "x and y must be finite, found 1 values"),
        (([], [], [Colouring("a", [], ["x"])]), "1 to 1,000,000 points"),
        (([[0.0]], [[0.0]], [EXPERT]), "one number a point"),
        ((X, Y, []), "at least one Colouring"),
        (
            (X, Y, [Colouring("a", [0, 1], ["x", "y"])]),
            r"a must be one integer a point, 3, found int64 of shape \(2,\)",
        ),
        ((X, Y, [Colouring("a", [0.0, 1, 1], ["x", "y"])]), "a must be one integer a point, 3, found float64"),
        ((X, Y, [Colouring("a", [0, 1, 2], ["x", "y"])]), "a must be numbers from 0 to 1, found 0 to 2"),
        ((X, Y, [Colouring("a", [0, -1, 1], ["x", "y"])]), "found -1 to 1"),
    ],
)
def test_what_is_no_map_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(*arguments)


def test_more_than_a_million_points_are_refused() -> None:
    many = np.zeros(MOST + 1)
    with pytest.raises(ValueError, match=r"1 to 1,000,000 points, found shape \(1000001,\)"):
        pack(many, many, [Colouring("a", many.astype(int), ["x"])])
    with pytest.raises(T.TraitError, match="at most 1,000,000 points"):
        TokenMap(points=bytes(8 * (MOST + 1)))


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (packed(points=b"1234567"), "points must be 8 bytes for each"),
        (packed(codes=b"\0" * 10), "codes must have 12 bytes for 2 colourings, found 10"),
        (packed(names=[["x", "y"]]), "names and colours must have a list for each colouring"),
        (packed(names=[["x"], ["a", "b", "c"]], colours=[["#000000"], ["#000000"] * 3]), "expert has 1 categories"),
        (packed(colour_by="kind"), "colour_by must be one of expert, task, found 'kind'"),
        (packed(text_codes=b"\0" * 8), "text_codes must be numbers of 2 texts"),
        (packed(texts=["a"]), "text_codes must be numbers of 1 texts"),
        (packed(selected=np.uint32([1, 3]).tobytes()), "selected must be increasing numbers of points below 3"),
        (packed(selected=np.uint32([2, 1]).tobytes()), "selected must be increasing"),
        (packed(axes=["PC 1"]), "axes must name x and y, found 1"),
    ],
)
def test_traits_that_do_not_fit_together_are_refused(traits: dict, message: str) -> None:
    with pytest.raises(T.TraitError, match=message):
        TokenMap(**traits)


def test_a_selection_from_the_page_is_numbers_of_points() -> None:
    widget = TokenMap(**packed())
    assert widget.indices.tolist() == []
    widget.set_state({"selected": memoryview(np.uint32([0, 2]).tobytes())})
    assert widget.indices.tolist() == [0, 2]
    with pytest.raises(T.TraitError, match="below 3"):
        widget.selected = np.uint32([7]).tobytes()
    with pytest.raises(TypeError, match="no trait 'colour'"):
        widget.show(colour="red")
    few = pack(X[:2], Y[:2], [Colouring("kind", [0, 0], ["x"])])
    widget.show(**few, selected=b"")
    assert widget.colour_by == "kind"


def test_the_component_has_the_widgets_traits_and_defaults() -> None:
    component, widget = panelize(TokenMap)(), TokenMap()
    names = set(TokenMap.own_traits())
    assert {"points", "codes", "selected", "hidden", "colour_by"} <= names
    assert {name: getattr(component, name) for name in names} == {name: getattr(widget, name) for name in names}


def test_colours_are_many_different_and_seen_on_light_and_dark_pages() -> None:
    colours = palette(64)
    assert len(set(colours)) == 64 and palette(3) == colours[:3]

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for colour in colours:
        white, black = 1.05 / (light(colour) + 0.05), (light(colour) + 0.05) / (0.0056 + 0.05)
        assert min(white, black) > 2, colour


def test_the_front_end_asks_nobody_and_names_its_licences() -> None:
    text = TokenMap.ESM
    assert not [word for word in ("fetch(", "XMLHttpRequest", "importScripts", "sourceMappingURL") if word in text]
    licences = (Path(token_map.__file__).parent / "LICENSES.txt").read_text(encoding="utf-8")
    for name in ("regl-scatterplot 1.16.0", "regl 2.1.1", "gl-matrix", "earcut", "pub-sub-es", "dom-2d-camera"):
        assert f"\n{name}" in licences


def test_the_map_of_a_result_holds_its_tokens_in_their_order() -> None:
    ds = synthetic.mapped()
    widget = show(ds, "token_map")
    np.testing.assert_allclose(np.frombuffer(widget.points, "<f4").reshape(2, -1)[1], ds["y"].values.ravel(), rtol=1e-6)
    words = [widget.texts[code] for code in np.frombuffer(widget.text_codes, "<u4")]
    assert words == ds["token"].values.ravel().tolist()
    assert (widget.span, widget.start) == (synthetic.KEYS, 1)
    assert widget.colourings == ["expert", "task", "kind", "position", "probability", "entropy"]
    codes = np.frombuffer(widget.codes, "<u2").reshape(6, -1)
    named = [[names[code] for code in row] for names, row in zip(widget.names, codes, strict=True)]
    assert named[0] == ["E0", "E1", "E1", "E2", "E0", "E2", "no expert", "E2"]
    assert named[1] == [synthetic.TASKS[0]] * 4 + [synthetic.TASKS[1]] * 4
    assert named[2] == ["content", "delimiter", "delimiter", "content"] * 2
    assert named[3] == ["1", "2", "3", "4"] * 2
    for row, name in ((4, "probability"), (5, "entropy")):
        values = ds[name].values.ravel()
        ends = [[float(end) for end in text.split(" to ")] for text in named[row]]
        assert all(low - 5e-3 <= value <= high + 5e-3 for value, (low, high) in zip(values, ends, strict=True))
    assert widget.axes == ["PC 1 (50% of the variance)", "PC 2 (25% of the variance)"]
    assert "trustworthiness 0.90 (shuffled 0.51)" in widget.note
    assert "neighbours of the same expert 80% (shuffled 40%)" in widget.note
    assert show(ds, "token_map", colour_by="kind").colour_by == "kind"


def test_a_result_without_experts_or_further_tasks_is_coloured_by_what_it_has() -> None:
    ds = synthetic.mapped().drop_vars(["probability", "entropy"])
    ds["first_expert"][:] = -1
    ds.attrs |= {"tasks": json.dumps([synthetic.TASKS[0]]), "method": "umap"}
    widget = show(ds, "token_map")
    assert widget.colourings == ["kind", "position"] and widget.axes == ["UMAP 1", "UMAP 2"]
    assert "distances between its clusters mean little" in widget.note and "same expert" not in widget.note
    with pytest.raises(ViewError, match=r"no colouring 'expert' .* it has kind, position"):
        show(ds, "token_map", colour_by="expert")
    with pytest.raises(ViewError, match="select it first"):
        show(ds.expand_dims(method=["x", "y"]), "token_map")


def shares(figure: go.Figure, panel: int, which: int) -> dict[str, float]:
    trace = figure.data[2 * panel + which]
    return {name.strip(): float(value) for name, value in zip(trace.y, trace.x, strict=True)}


def test_a_selection_is_drawn_beside_all_tokens() -> None:
    ds = synthetic.mapped()
    figure = VIEWS["token_selection"].draw(ds, selected=[1, 2, 5])
    assert [note.text for note in figure.layout.annotations] == ["expert", "task", "kind", "token"]
    own, every = shares(figure, 0, 0), shares(figure, 0, 1)
    assert own == pytest.approx({"E1": 2 / 3, "E2": 1 / 3, "E0": 0, "no expert": 0})
    assert every == pytest.approx({"E1": 2 / 8, "E2": 3 / 8, "E0": 2 / 8, "no expert": 1 / 8})
    spread = dict(zip(every, figure.data[1].error_x.array, strict=True))
    rng = np.random.default_rng(0)
    first = ds["first_expert"].values.ravel()
    drawn = [(rng.permutation(first)[:3] == 2).mean() for _ in range(4000)]
    assert spread["E2"] / 1.96 == pytest.approx(np.std(drawn), rel=0.05)
    assert shares(figure, 3, 0)["a"] == 2 / 3 and "↵" in shares(figure, 3, 0)
    assert "3 of 8 tokens selected" in figure.layout.title.text
    assert "<i>" not in str(figure.to_dict()) and "<b>" not in str(figure.to_dict())


def test_no_selection_is_all_tokens_and_a_wrong_one_is_refused() -> None:
    ds = synthetic.mapped()
    figure = VIEWS["token_selection"].draw(ds)
    assert shares(figure, 0, 0) == shares(figure, 0, 1)
    assert "all 8 tokens" in figure.layout.title.text
    with pytest.raises(ViewError, match="numbered 0 to 7; 3 to 8 were selected"):
        VIEWS["token_selection"].draw(ds, selected=[3, 8])
