"""What is selected now."""

import pytest

from workbench.session import URL, Session


def test_a_head_goes_in_as_a_cell_and_comes_out_as_one():
    session = Session()
    session.select([2, 5])
    assert (session.head, session.selected) == ("L2H5", [2, 5])
    session.select([])
    assert (session.head, session.selected) == ("", [])


@pytest.mark.parametrize(("text", "cell"), [("1.3", [1, 3]), ("a0.h7", [0, 7]), ("nonsense", [])])
def test_other_spellings_are_understood_and_nonsense_selects_nothing(text, cell):
    assert Session(head=text).selected == cell


def test_the_reference_names_the_checkpoint_unless_it_is_the_final_one():
    assert Session(model="zoo/tasks").reference == "zoo/tasks"
    assert Session(model="zoo/tasks", checkpoint="500").reference == "zoo/tasks@500"


def test_everything_in_an_address_is_a_plain_value():
    session = Session()
    assert all(isinstance(getattr(session, name), (str, int, float)) for name in URL)


@pytest.mark.parametrize("bad", [{"n": 2}, {"top": 0}, {"top": 1.5}, {"query": -2}, {"page": 2}])
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Session(**bad)
