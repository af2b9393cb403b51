"""What the widgets accept and how they pack arrays, without a browser."""

import subprocess
import sys

import numpy as np
import param
import pytest
import traitlets as T

from widgets import AttentionView, HeadGrid, head_grid
from workbench.app.hosting import panelize


def test_packed_heads_are_little_endian_floats_and_bytes() -> None:
    values = np.arange(12.0).reshape(2, 3, 2)
    traits = head_grid.pack(values, low=values - 1, high=values + 1, marks=values.astype(int) % 3)
    assert traits["shape"] == [2, 3, 2]
    for name, expected in (("values", values), ("low", values - 1), ("high", values + 1)):
        np.testing.assert_array_equal(np.frombuffer(traits[name], "<f4").reshape(2, 3, 2), expected)
    assert list(traits["marks"]) == [0, 1, 2] * 4
    assert head_grid.pack(values)["low"] == b""


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"values": np.zeros((2, 3))}, r"\[panel, layer, head\], found shape \(2, 3\)"),
        ({"values": np.zeros((1, 2, 3)), "low": np.zeros((2, 3))}, r"low must have the shape .*found \(2, 3\)"),
        ({"values": np.zeros((1, 1, 1)), "marks": [[[3]]]}, r"marks must be 0, 1 or 2, found \[3\]"),
    ],
)
def test_arrays_that_are_no_head_map_are_refused(arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_grid.pack(**arrays)


def small(**traits) -> dict:
    return head_grid.pack(np.zeros((2, 3, 4))) | traits


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (small(values=b"\0" * 95), "values must have 96 bytes .*, found 95"),
        (small(low=b"\0" * 4, high=b"\0" * 96), "low must have 96 bytes .*, found 4"),
        (small(low=b"\0" * 96), "low and high must be given together"),
        (small(marks=b"\0" * 25), "marks must have 24 bytes .*, found 25"),
        (small(marks=b"\3" * 24), r"marks must be 0, 1 or 2, found \[3\]"),
        (small(titles=["one"]), "titles must have one entry a panel, 2, found 1"),
        (small(layers=[0, 2]), r"layers must be 3 increasing layer numbers, found \[0, 2\]"),
        (small(layers=[0, 2, 1]), r"increasing layer numbers, found \[0, 2, 1\]"),
        (small(layers=[0, 4, 8], selected=[1, 0]), r"a layer of \[0, 4, 8\]: \[1, 0\]"),
        (small(selected=[0, 4]), r"a head from 0 to 3, found \[0, 4\]"),
        (small(selected=[0]), r"\[layer number, head\]"),
        (small(limit=float("nan")), "limit must be a finite number"),
    ],
)
def test_a_head_grid_that_does_not_fit_together_is_refused(traits: dict, message: str) -> None:
    with pytest.raises(T.TraitError, match=message):
        HeadGrid(**traits)


def test_show_changes_dependent_traits_at_once_and_single_changes_are_refused() -> None:
    grid = HeadGrid(**small())
    larger = head_grid.pack(np.ones((1, 5, 6)))
    with pytest.raises(T.TraitError, match=r"values must have 480 bytes .*, found 96; .*show"):
        grid.shape = [1, 8, 15]
    assert grid.shape == [2, 3, 4]
    grid.show(**larger, titles=["only"], selected=[4, 5])
    assert (grid.shape, grid.values, grid.selected) == ([1, 5, 6], larger["values"], [4, 5])


def test_show_names_the_traits_it_knows() -> None:
    with pytest.raises(TypeError, match=r"no trait 'colour'; it has .*selected"):
        HeadGrid().show(colour="red")


def test_bytes_from_the_page_become_bytes() -> None:
    grid = HeadGrid(**head_grid.pack(np.zeros((1, 1, 1))))
    grid.set_state({"values": memoryview(np.float32([2.5]).tobytes())})
    assert grid.values == np.float32([2.5]).tobytes()


@pytest.mark.parametrize(("widget", "count"), [(HeadGrid, 12), (AttentionView, 19)])
def test_a_component_has_the_widgets_traits_and_defaults(widget: type, count: int) -> None:
    component = panelize(widget)
    assert component is panelize(widget)
    made, original = component(), widget()
    names = {name for name, trait in widget.class_traits(sync=True).items() if trait.this_class is widget}
    assert len(names) == count
    assert {name: getattr(made, name) for name in names} == {name: getattr(original, name) for name in names}
    assert all(component.param[name].doc == widget.class_traits()[name].help for name in names)


def test_components_do_not_share_lists() -> None:
    first, second = panelize(HeadGrid)(), panelize(HeadGrid)()
    first.selected.append(1)
    assert second.selected == []


def test_a_trait_that_panel_cannot_carry_is_named() -> None:
    class Odd(HeadGrid):
        when = T.Set().tag(sync=True)

    class Taken(HeadGrid):
        width = T.Int().tag(sync=True)

    with pytest.raises(TypeError, match="trait 'when' is a Set; known are Bool"):
        panelize(Odd)
    with pytest.raises(ValueError, match=r"Taken .*\['width'\]"):
        panelize(Taken)
    assert isinstance(panelize(HeadGrid).param.limit, param.Number)


def test_the_widgets_need_neither_the_workbench_nor_panel_nor_torch() -> None:
    code = "import sys, widgets; sys.exit(', '.join({'workbench', 'panel', 'torch'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
