"""What the editor of one attention row accepts and how it packs a prompt, without a browser."""

import numpy as np
import pytest
import traitlets as T

from widgets import attention_row
from widgets.attention_row import AttentionRow
from workbench.app.hosting import panelize

TOKENS = ["The", " red", " and", " blue", " one", " next"]
NAMES = ["", "color_1", "", "color_2", "END", ""]


def row(**traits) -> dict:
    return attention_row.pack(TOKENS, [0.5, 0.125, 0, 0.25, 0.125, 0], NAMES) | {"query": 4} | traits


def test_a_packed_prompt_is_strings_and_little_endian_floats() -> None:
    packed = attention_row.pack(tuple(TOKENS), np.linspace(0, 1, 6), NAMES)
    assert (packed["tokens"], packed["names"]) == (TOKENS, NAMES)
    np.testing.assert_allclose(np.frombuffer(packed["weights"], "<f4"), np.linspace(0, 1, 6), rtol=1e-6)
    assert attention_row.pack(TOKENS) == {"tokens": TOKENS, "names": [], "weights": b""}
    assert attention_row.pack([], []) == {"tokens": [], "names": [], "weights": b""}
    # Half precision may pass the ends by a little.
    assert attention_row.pack(["a", "b"], [1.0004, -0.0002])["weights"] == np.float32([1, 0]).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], [1.0]), r"weights must have one number a token, 2, found shape \(1,\)"),
        ((["a", "b"], []), r"one number a token, 2, found shape \(0,\)"),
        ((["a"], [[1.0]]), r"one number a token, 1, found shape \(1, 1\)"),
        ((["a", "b"], [np.nan, 1]), "weights must be finite, found 1 values"),
        ((["a", "b"], [-0.5, 1]), r"weights must lie in \[0, 1\], found -0.5 to 1"),
        ((["a", "b"], [0, 1.5]), r"weights must lie in \[0, 1\], found 0 to 1.5"),
        ((["a", "b"], None, ["x"]), "names must have one entry a token, 2, found 1"),
        (("ab",), "tokens must be a sequence of strings, one a token, found the single string 'ab'"),
        (([1, 2],), "tokens must be strings, found 1"),
        ((["a", "b"], None, ["x", None]), "names must be strings, found None"),
    ],
)
def test_what_is_no_row_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_row.pack(*arguments)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], ()),
        ([0, 0, 0], ()),
        ([0, 1, 0, 1, 0, 0], (0, 0.5, 0, 0.5, 0, 0)),
        ([3, 0, 0, 0, 1, 0], (0.75, 0, 0, 0, 0.25, 0)),
    ],
)
def test_shares_are_parts_of_their_sum(parts: list[int], expected: tuple) -> None:
    assert attention_row.shares(parts) == expected
    if len(parts) in (0, len(TOKENS)):
        assert AttentionRow(**row(parts=parts)).shares == expected


def test_negative_parts_have_no_shares() -> None:
    with pytest.raises(ValueError, match="parts must be 0 or more, found -1"):
        attention_row.shares([1, -1])


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (row(names=["x"]), "names must have one entry a token, 6, or none, found 1"),
        (row(parts=[1, 1]), "parts must have one entry a token, 6, or none, found 2"),
        (row(suggested=[0] * 7), "suggested must have one entry a token, 6, or none, found 7"),
        (row(query=6), "query must be -1 or a position from 0 to 5, found 6"),
        (row(query=-2), "query must be -1 or a position from 0 to 5, found -2"),
        (row(weights=b"\0" * 23), "weights must have 24 bytes for 6 tokens, found 23"),
        (row(weights=np.float32([0, 0, 2, 0, 0, 0]).tobytes()), r"weights must lie in \[0, 1\], found 0 to 2"),
        (row(weights=np.float32([0, 0, np.inf, 0, 0, 0]).tobytes()), "weights must be finite, found 1 values"),
        (row(parts=[1, 0, 0, 0, 0, 2]), r"parts must be 0 after the query at 4, found a part at \[5\]"),
        (row(suggested=[0, 0, 1, 1, 0, 0], query=1), r"suggested must be 0 after the query at 1, .* \[2, 3\]"),
        (row(parts=[-1, 0, 0, 0, 0, 0]), "parts"),
    ],
)
def test_traits_that_do_not_fit_together_are_refused(traits: dict, message: str) -> None:
    with pytest.raises(T.TraitError, match=message):
        AttentionRow(**traits)


def test_the_last_token_is_the_query_unless_another_is_named() -> None:
    assert AttentionRow(tokens=["a", "b"], parts=[0, 1]).shares == (0, 1)
    with pytest.raises(T.TraitError, match="after the query at 0"):
        AttentionRow(tokens=["a", "b"], parts=[0, 1], query=0)


def test_show_changes_dependent_traits_at_once_and_single_changes_are_refused() -> None:
    widget = AttentionRow(**row(parts=[0, 1, 0, 1, 0, 0]))
    with pytest.raises(T.TraitError, match=r"after the query at 2.*show\(\)"):
        widget.query = 2
    with pytest.raises(T.TraitError, match=r"names must have one entry a token, 1"):
        widget.tokens = ["a"]
    assert (widget.query, widget.tokens) == (4, TOKENS)
    widget.show(**attention_row.pack(["a", "b"], [0.5, 0.5]), parts=[1, 2], query=-1, heading="END row of L3H4")
    assert (widget.tokens, widget.names, widget.shares) == (["a", "b"], [], (1 / 3, 2 / 3))
    with pytest.raises(TypeError, match=r"no trait 'colour'; it has heading, .*parts.*tokens"):
        widget.show(colour="red")


def test_edits_from_the_page_are_checked_like_those_from_python() -> None:
    widget = AttentionRow(**row())
    widget.set_state({"parts": [0, 2, 0, 1, 0, 0]})
    assert widget.shares == (0, 2 / 3, 0, 1 / 3, 0, 0)
    widget.set_state({"weights": memoryview(np.float32([0, 0, 0, 0, 1, 0]).tobytes())})
    assert widget.weights == np.float32([0, 0, 0, 0, 1, 0]).tobytes()
    with pytest.raises(T.TraitError, match="after the query"):
        widget.set_state({"parts": [0, 0, 0, 0, 0, 1]})


def test_the_component_has_the_widgets_traits_and_defaults() -> None:
    component, widget = panelize(AttentionRow)(), AttentionRow()
    names = {name for name, trait in AttentionRow.class_traits(sync=True).items() if trait.this_class is AttentionRow}
    assert names == {"tokens", "names", "weights", "parts", "suggested", "query", "heading"}
    assert {name: getattr(component, name) for name in names} == {name: getattr(widget, name) for name in names}
    assert all(component.param[name].doc == AttentionRow.class_traits()[name].help for name in names)
