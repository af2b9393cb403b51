"""The Python side of the attention view: what is packed, what is refused, and what is sent when the page asks."""

import json

import numpy as np
import pytest
import traitlets as T
import xarray as xr

from widgets import AttentionView
from widgets.attention_view import pack, traits_of, unpack
from widgets.attention_view.answers import LOG_FLOOR
from widgets.attention_view.packing import pack_between, pool, without
from workbench.app.hosting import panelize
from workbench.schema import concat
from workbench.views import ViewError, show
from workbench.views.attention_pattern import attention_pattern


def causal(size: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(0, 3, (size, size))
    weights = np.exp(scores) * np.tri(size)
    return weights / weights.sum(1, keepdims=True)


def several(layers: int, heads: int, size: int) -> np.ndarray:
    return np.stack([[causal(size, 10 * layer + head) for head in range(heads)] for layer in range(layers)])


def item(a: list[int], size: int, **more) -> dict:
    default = {"key": str(a), "a": a, "b": None, "scale": "probability", "masked": [], "bins": 0, "size": size}
    return default | more


def ask(owner, *items: dict) -> dict[str, dict]:
    """What comes back for some items, by their keys, with the bytes of each as `data`."""
    owner._want = {"id": "7", "items": list(items)}
    return opened(owner._parts)


def opened(parts: bytes) -> dict[str, dict]:
    at = 4 + int.from_bytes(parts[:4], "little")
    head, found = json.loads(parts[4:at]), {}
    assert head["id"] == "7"
    for part in head["parts"]:
        found[part["key"]] = part | {"data": parts[at : at + part["length"]]}
        at += part["length"]
    assert at == len(parts)
    return found


def values(part: dict, size: int, causal: bool = True) -> np.ndarray:
    """The numbers of a part whose bytes count evenly, NaN where there is none."""
    raw = np.frombuffer(part["data"], np.uint8).astype(float)
    raw[raw == 255] = np.nan
    matrix = np.full((size, size), np.nan)
    matrix[np.tri(size, dtype=bool) if causal else np.ones((size, size), bool)] = raw
    return part["low"] + matrix / 254 * (part["high"] - part["low"])


@pytest.fixture(params=["widget", "component"])
def host(request):
    """Either host of the same traits."""
    return AttentionView if request.param == "widget" else panelize(AttentionView)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("size", [1, 2, 17, 64])
def test_packed_attention_comes_back(size: int, is_causal: bool) -> None:
    pattern = causal(size) if is_causal else causal(size)[::-1, ::-1]
    packed = pack(pattern, is_causal)
    assert len(packed) == (size * (size + 1) // 2 if is_causal else size**2)
    np.testing.assert_allclose(unpack(packed, size, is_causal), pattern, atol=0.004)


def test_packed_attention_is_the_lower_triangle_row_by_row() -> None:
    pattern = [[1, 0, 0], [0.25, 0.75, 0], [0.04, 0, 0.96]]
    assert list(pack(pattern)) == [255, 128, 221, 51, 0, 250]
    assert list(pack(pattern, causal=False)) == [255, 0, 0, 128, 221, 0, 51, 0, 250]


def test_values_between_two_ends_are_254_steps_and_nothing_is_255() -> None:
    numbers = np.array([[-2.0, 0], [0, np.nan]])
    assert list(pack_between(numbers, -2, 2)) == [0, 127, 255]
    assert list(pack_between(np.array([[5.0]]), 5, 5)) == [0]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (np.ones((2, 3)), r"square.*\(2, 3\)"),
        (np.ones(4), r"square.*\(4,\)"),
        ([[1, 0], [np.nan, 1]], "finite, found 1 values"),
        ([[1, 0], [-0.5, 1]], r"\[0, 1\], found -0.5 to 1"),
        ([[1, 0], [0, 1.5]], r"\[0, 1\], found 0 to 1.5"),
        ([[0.5, 0.5], [0.5, 0.5]], "causal, found attention 0.5 .*causal=False"),
    ],
)
def test_what_is_no_attention_is_refused(pattern, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(pattern)


def test_unpack_names_the_bytes_it_needs() -> None:
    with pytest.raises(ValueError, match="3 tokens have 6 pairs and as many bytes, found 5"):
        unpack(b"\0" * 5, 3)


def test_rows_without_the_sink_sum_to_one_again() -> None:
    pattern = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.6, 0.1, 0.3]])
    expected = [[0, 0, 0], [0, 1, 0], [0, 0.25, 0.75]]
    np.testing.assert_allclose(without(pattern, [0]), expected)
    assert pattern[0, 0] == 1, "the source keeps its array"


@pytest.mark.parametrize(("size", "bins"), [(7, 3), (8, 4), (65, 64), (100, 16)])
def test_pooling_is_the_largest_of_each_block(size: int, bins: int) -> None:
    numbers = np.random.default_rng(1).normal(size=(size, size))
    block = np.arange(size) * bins // size
    for signed in (False, True):
        expected = np.zeros((bins, bins))
        for row, column in np.ndindex(bins, bins):
            inside = numbers[np.ix_(block == row, block == column)].ravel()
            expected[row, column] = inside[np.abs(inside).argmax()] if signed else inside.max()
        np.testing.assert_allclose(pool(numbers, bins, signed), expected)


def test_pooling_passes_over_what_has_no_value() -> None:
    numbers = np.array([[np.nan, np.nan, 1, np.nan], [-3, np.nan, np.nan, np.nan], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(pool(numbers, 2), [[-3, 1], [0, 0]])
    np.testing.assert_array_equal(pool(np.full((4, 4), np.nan), 2), np.full((2, 2), np.nan))


def test_nothing_is_read_or_sent_before_the_page_asks(host) -> None:
    asked = []

    def source(*place):
        asked.append(place)
        return causal(5)

    made = host(source=source, tokens=list("abcde"), layers=[0, 1], heads=[0, 1, 2])
    assert asked == []
    found = ask(made, item([0, 1, 2], 5))
    assert asked == [(0, 1, 2, "pattern")]
    assert list(found) == ["[0, 1, 2]"] and found["[0, 1, 2]"]["data"] == pack(causal(5))


def test_a_request_is_answered_with_its_maps_in_order(host) -> None:
    pattern = several(2, 2, 6)
    made = host(**traits_of(pattern, list("abcdef")))
    found = ask(made, item([0, 1, 0], 6), item([0, 0, 1], 6))
    assert [part["data"] for part in found.values()] == [pack(pattern[1, 0]), pack(pattern[0, 1])]
    assert all((part["low"], part["high"], part["rooted"]) == (0, 1, True) for part in found.values())
    again = ask(made, item([0, 0, 0], 6))
    assert list(again) == ["[0, 0, 0]"]


def test_log_probabilities_have_a_floor(host) -> None:
    pattern = np.array([[1, 0], [1e-9, 1 - 1e-9]])
    (part,) = ask(host(**traits_of(pattern, ["a", "b"])), item([0, 0, 0], 2, scale="log")).values()
    np.testing.assert_allclose(values(part, 2)[np.tri(2, dtype=bool)], [0, LOG_FLOOR, 0], atol=1e-9)
    pattern = causal(40)
    (part,) = ask(host(**traits_of(pattern, ["a"] * 40)), item([0, 0, 0], 40, scale="log")).values()
    expected = np.log(pattern, where=pattern > 0, out=np.full((40, 40), np.nan)).clip(LOG_FLOOR, 0)
    np.testing.assert_allclose(values(part, 40), expected, atol=12 / 254 / 2 + 1e-9)


def test_scores_keep_their_range_and_their_holes(host) -> None:
    scores = np.array([[3.0, 99, 99], [-np.inf, -1, 99], [1, 2, 0]])
    made = host(**traits_of(np.tri(3) / [[1], [2], [3]], ["a", "b", "c"], scores=scores))
    (part,) = ask(made, item([0, 0, 0], 3, scale="score")).values()
    assert (part["low"], part["high"]) == (-1, 3)
    expected = [[3, np.nan, np.nan], [np.nan, -1, np.nan], [1, 2, 0]]
    np.testing.assert_allclose(values(part, 3), expected, atol=4 / 254)


def test_masked_keys_have_no_value_and_the_rest_is_renormalised(host) -> None:
    pattern = causal(30)
    made = host(**traits_of(pattern, ["a"] * 30))
    (part,) = ask(made, item([0, 0, 0], 30, masked=[0, 3])).values()
    assert part["data"] == pack(without(pattern, [0, 3]))
    (part,) = ask(made, item([0, 0, 0], 30, masked=[0], scale="log")).values()
    found = values(part, 30)
    assert np.isnan(found[:, 0]).all() and np.isnan(found[0]).all()
    rest = pattern[20, 1:21] / (1 - pattern[20, 0])
    np.testing.assert_allclose(found[20, 1:21], np.log(rest).clip(LOG_FLOOR, 0), atol=12 / 254)


def test_a_difference_lies_around_zero(host) -> None:
    a, b = several(1, 2, 9), several(1, 2, 9)[:, ::-1]
    made = host(**traits_of(a, ["a"] * 9, other=b))
    (part,) = ask(made, item([0, 0, 0], 9, b=[1, 0, 0])).values()
    limit = np.abs(a[0, 0] - b[0, 0]).max()
    assert part["high"] == pytest.approx(limit) and part["low"] == pytest.approx(-limit)
    expected = np.where(np.tri(9) > 0, a[0, 0] - b[0, 0], np.nan)
    np.testing.assert_allclose(values(part, 9), expected, atol=limit / 254 + 1e-9)
    (part,) = ask(made, item([0, 0, 1], 9, b=[0, 0, 1])).values()
    assert set(part["data"]) == {0} and part["low"] == part["high"] == 0


def test_blocks_of_a_long_prompt_are_sent_instead_of_pairs(host) -> None:
    pattern = causal(100)
    made = host(**traits_of(pattern, ["a"] * 100))
    (part,) = ask(made, item([0, 0, 0], 100, bins=20)).values()
    assert part["data"] == pack(pool(pattern, 20)) and part["length"] == 210
    (part,) = ask(made, item([0, 0, 0], 100, bins=20, scale="log")).values()
    logs = np.log(pattern, where=pattern > 0, out=np.full((100, 100), -99.0)).clip(LOG_FLOOR, 0)
    np.testing.assert_allclose(
        values(part, 20)[np.tri(20, dtype=bool)], pool(logs, 20)[np.tri(20, dtype=bool)], atol=0.03
    )


def test_a_pattern_in_both_directions_is_a_whole_square(host) -> None:
    pattern = np.random.default_rng(0).dirichlet(np.ones(7), size=7)
    made = host(**traits_of(pattern, list("abcdefg")), causal=False)
    (part,) = ask(made, item([0, 0, 0], 7)).values()
    assert part["data"] == pack(pattern, causal=False) and part["length"] == 49


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": [0, 5, 0]}, "there is no head 5, 0 on side 0"),
        ({"a": [1, 0, 0]}, "there is no head 0, 0 on side 1"),
        ({"a": [-1, 0, 0]}, "there is no head 0, 0 on side -1"),
        ({"scale": "score"}, "score needs scores"),
        ({"scale": "colour"}, "scale must be one of probability, log, score"),
        ({"size": 5}, "side 0 has 4 tokens, asked for 5"),
        ({"bins": 4}, "bins must be 0, or from 16 to 1024 and less than 4"),
        ({"masked": [-1]}, "masked must be key positions"),
    ],
)
def test_what_cannot_be_sent_is_said_in_its_place(host, wrong: dict, message: str) -> None:
    made = host(**traits_of(causal(4), list("abcd")))
    found = ask(made, item([0, 0, 0], 4, key="bad") | wrong | {"key": "bad"}, item([0, 0, 0], 4))
    assert message in found["bad"]["error"] and found["bad"]["data"] == b""
    assert found["[0, 0, 0]"]["data"] == pack(causal(4))


def test_what_a_source_raises_or_gets_wrong_reaches_the_page(host) -> None:
    def broken(side, layer, head, kind):
        return np.ones((2, 3)) if head else 1 / 0

    made = host(source=broken, tokens=["a", "b"], layers=[0], heads=[0, 1])
    found = ask(made, item([0, 0, 0], 2), item([0, 0, 1], 2))
    assert "ZeroDivisionError: division by zero" in found["[0, 0, 0]"]["error"]
    assert "shape (2, 2), found (2, 3)" in found["[0, 0, 1]"]["error"]


def test_another_source_makes_the_page_forget(host) -> None:
    made = host(**traits_of(causal(3), list("abc")))
    before = made._parts
    made.source = traits_of(causal(3, 5), list("abc"))["source"]
    first = made._parts
    assert first != before and json.loads(first[4:])["reset"]
    made.source = None
    assert made._parts != first


def test_arrays_become_traits() -> None:
    found = traits_of(several(2, 3, 4), list("abcd"), title="here")
    assert (found["layers"], found["heads"], found["title"], found["has_scores"]) == ([0, 1], [0, 1, 2], "here", False)
    assert "selected" not in found and "tokens_b" not in found
    single = traits_of(causal(2), ["a", "b"], scores=causal(2), other=causal(2), other_scores=causal(2))
    assert (single["selected"], single["tokens_b"], single["has_scores"]) == ([0, 0], ["a", "b"], True)
    coords = {"layer": [4, 7], "head": [1, 2, 9]}
    named = xr.DataArray(several(2, 3, 4), coords, ("layer", "head", "query_pos", "key_pos"))
    found = traits_of(named.transpose("key_pos", "head", "layer", "query_pos"), list("abcd"))
    assert (found["layers"], found["heads"]) == ([4, 7], [1, 2, 9])
    np.testing.assert_array_equal(found["source"](0, 7, 9, "pattern"), named.values[1, 2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pattern": np.ones(3)}, r"axes \[layer, head, query, key\], found shape \(3,\)"),
        ({"pattern": several(1, 2, 3), "other": several(2, 2, 3)}, r"must have the layers \[0\]"),
        ({"pattern": causal(3), "other": causal(3), "scores": causal(3)}, "scores of both sides or of neither"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        traits_of(**arrays, tokens=["a", "b", "c"])


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"token": 3}, "token must be -1 or a position from 0 to 2, found 3"),
        ({"token": -2}, "token"),
        ({"sinks": [0, 3]}, r"sinks must be positions from 0 to 2, found \[3\]"),
        ({"layers": [1, 0]}, r"layers must be increasing numbers, found \[1, 0\]"),
        ({"heads": [0, 0]}, "heads must be increasing numbers"),
        ({"selected": [2, 0]}, r"selected must be \[layer, head\] of the layers \[0, 1\] and the heads \[0, 1, 2\]"),
        ({"selected": [1]}, "selected must be"),
        ({"shown": [[0, 0], [0, 3]]}, r"shown must be .*found \[0, 3\]"),
        ({"versus": [0, 7]}, "versus must be"),
        ({"scale": "odds"}, "scale must be one of probability, log, score, found 'odds'"),
        ({"scale": "score"}, "has_scores is False"),
        ({"role": "value"}, "role must be one of query, key"),
        ({"compare": "difference"}, "compare is 'difference', which needs tokens_b or versus"),
        ({"compare": "difference", "tokens_b": ["a"]}, "as many tokens in tokens as in tokens_b, found 3 and 1"),
        ({"names": ["A"]}, "names must be those of A and B, found 1"),
        ({"source": 3}, "source"),
    ],
)
def test_traits_that_do_not_fit_together_are_refused(traits: dict, message: str) -> None:
    with pytest.raises(T.TraitError, match=message):
        AttentionView(**traits_of(several(2, 3, 3), ["a", "b", "c"]) | traits)


def test_show_changes_traits_at_once() -> None:
    view = AttentionView(**traits_of(several(2, 3, 3), ["a", "b", "c"]))
    view.show(**traits_of(causal(2), ["a", "b"]), token=1)
    assert (view.tokens, view.token, view.layers, view.selected) == (["a", "b"], 1, [0], [0, 0])
    with pytest.raises(T.TraitError, match="one call of show"):
        view.tokens = ["a"]
    with pytest.raises(TypeError, match=r"no trait 'colour'; it has causal, .*source, .*tokens_b"):
        view.show(colour="red")
    with pytest.raises(TypeError, match="no trait '_parts'"):
        view.show(_parts=b"")


def test_the_source_never_leaves_python() -> None:
    assert "source" not in AttentionView().get_state()
    component = panelize(AttentionView)
    assert "source" not in component._data_model.properties() and "_want" in component._data_model.properties()


def test_a_request_from_the_page_is_answered() -> None:
    view = AttentionView(**traits_of(causal(3), list("abc")))
    view.set_state({"_want": {"id": "7", "items": [item([0, 0, 0], 3)]}})
    assert opened(view._parts)["[0, 0, 0]"]["data"] == pack(causal(3))


def result(pattern: np.ndarray, tokens: list[str], **attrs) -> xr.Dataset:
    dims = ("layer", "head", "query_pos", "key_pos")
    ds = xr.Dataset(
        {"pattern": (dims, pattern)},
        {dim: np.arange(size) for dim, size in zip(dims, pattern.shape, strict=True)} | {"token": ("key_pos", tokens)},
    )
    ds.attrs = {"analysis": "attention", "prompt": 0, "task": "ioi", "model": "zoo/m", "checkpoint": "9"} | attrs
    return ds


def test_a_view_of_a_result_draws_every_head_or_those_asked_for() -> None:
    pattern = several(2, 3, 4)
    ds = result(pattern, list("abcd"), causal=1)
    every = attention_pattern(ds).traits
    assert (every["shown"], every["selected"], every["token"]) == ([], [], 3)
    assert (every["layers"], every["heads"], every["title"]) == ([0, 1], [0, 1, 2], "prompt 0 of ioi in zoo/m")
    assert attention_pattern(ds, layer=1).traits["shown"] == [[1, 0], [1, 1], [1, 2]]
    assert attention_pattern(ds, head=2).traits["shown"] == [[0, 2], [1, 2]]
    one = show(ds, "attention_pattern", layer=1, head=2, token=1)
    assert (one.selected, one.shown, one.token) == ([1, 2], [], 1)
    assert ask(one, item([0, 1, 2], 4))["[0, 1, 2]"]["data"] == pack(pattern[1, 2])
    assert attention_pattern(result(causal(1)[None, None], ["a"])).traits["selected"] == [0, 0]
    with pytest.raises(ViewError, match="no layer 5"):
        attention_pattern(ds, layer=5)
    assert not attention_pattern(result(pattern, list("abcd"), causal=0)).traits["causal"]


def test_two_checkpoints_or_two_results_are_two_sides() -> None:
    first, second = (result(several(2, 3, 4) if at else several(2, 3, 4)[::-1], list("abcd")) for at in (0, 1))
    second.attrs["checkpoint"] = "99"
    joined = concat({"step-9": first, "step-99": second})
    for drawn in (attention_pattern(joined), attention_pattern(first, other=second)):
        view = drawn.build()
        assert (view.compare, view.tokens_b) == ("beside", list("abcd"))
        found = ask(view, item([0, 1, 0], 4), item([1, 1, 0], 4))
        assert [part["data"] for part in found.values()] == [pack(ds["pattern"].values[1, 0]) for ds in (first, second)]
    assert attention_pattern(joined).traits["names"] == ["checkpoint step-9", "checkpoint step-99"]
    assert attention_pattern(first, other=second).traits["names"] == ["step 9", "step 99"]
    final = first.assign_attrs(checkpoint=-1)
    assert attention_pattern(first, other=final).traits["names"] == ["step 9", "final weights"]
    other = result(several(2, 3, 6), list("abcdef"), prompt=4)
    assert attention_pattern(first, other=other).traits["names"] == ["prompt 0", "prompt 4"]
    assert attention_pattern(first, other=other).build().tokens_b == list("abcdef")


def test_sides_that_cannot_be_compared_are_refused() -> None:
    ds = result(several(2, 3, 4), list("abcd"))
    with pytest.raises(ViewError, match="different layers or heads"):
        attention_pattern(ds, other=result(several(1, 3, 4), list("abcd")))
    three = concat({name: ds for name in "abc"})
    with pytest.raises(ViewError, match="one or two results; select among checkpoint"):
        attention_pattern(three)
    with pytest.raises(ViewError, match="one checkpoint each"):
        attention_pattern(ds, other=three)
    assert attention_pattern(three.sel(checkpoint=["a"])).traits["tokens_b"] == []
    tasks = concat({"one": ds.assign_attrs(text="x"), "two": ds.assign_attrs(text="y")}, dim="task")
    with pytest.raises(ViewError, match="give the second result as other="):
        attention_pattern(tasks)
    with pytest.raises(ViewError, match="square, found 2 queries, 4 keys"):
        attention_pattern(ds.isel(query_pos=[0, 1]))
