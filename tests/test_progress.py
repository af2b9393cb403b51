"""How loops report where they are, and hear that they should stop."""

import pytest

from workbench.progress import reporting, track


def test_every_step_is_reported_after_it_was_done():
    heard, made = [], []

    def report(what, done, total):
        heard.append((what, done, total, len(made)))
        return True

    with reporting(report):
        for item in track("abc", "letters", 3):
            made.append(item)
    assert made == list("abc")
    assert heard == [("letters", step, 3, step) for step in range(4)]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_no_stops_before_the_next_item(steps):
    with reporting(lambda what, done, total: done < steps):
        assert list(track("abc", "letters", 3)) == list("abc")[:steps]


def test_outside_the_block_nobody_is_told():
    heard = []
    with reporting(lambda *report: bool(heard.append(report)) or True):
        pass
    assert list(track("abc", "letters", 3)) == list("abc") and not heard


def test_an_error_in_the_block_ends_the_reporting():
    heard = []
    with pytest.raises(ZeroDivisionError), reporting(lambda *report: bool(heard.append(report)) or True):
        raise ZeroDivisionError
    list(track("abc", "letters", 3))
    assert not heard
