"""The registry: names to things, and an unknown name lists the known ones."""

import pytest

from workbench.registry import Registry, WorkbenchError


@pytest.fixture
def fruits() -> Registry[str]:
    registry: Registry[str] = Registry("fruit")
    for name in ("pear", "apple", "plum"):
        registry.add(name, name.upper())
    return registry


def test_it_gives_what_was_added(fruits):
    assert fruits["pear"] == "PEAR" and fruits.add("fig", "FIG") == "FIG"
    assert "fig" in fruits and "grape" not in fruits and None not in fruits


def test_it_goes_by_name(fruits):
    assert list(fruits) == ["apple", "pear", "plum"] and len(fruits) == 3
    assert list(fruits.items()) == [("apple", "APPLE"), ("pear", "PEAR"), ("plum", "PLUM")]


@pytest.mark.parametrize(
    ("name", "ending"), [("aple", "Did you mean 'apple'?"), ("zzz", "apple, pear, plum."), (3, ".")]
)
def test_an_unknown_name_lists_the_known_and_suggests_the_nearest(fruits, name, ending):
    with pytest.raises(WorkbenchError) as caught:
        fruits[name]
    assert f"There is no fruit '{name}'; there are: apple, pear, plum." in str(caught.value)
    assert str(caught.value).endswith(ending)


def test_a_name_is_taken_once(fruits):
    with pytest.raises(ValueError, match="already a fruit called 'pear'"):
        fruits.add("pear", "another")
    assert fruits["pear"] == "PEAR"
