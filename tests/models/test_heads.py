"""Names of heads, as people write them."""

import pytest

from workbench.models.heads import head_name, parse_head
from workbench.registry import WorkbenchError


@pytest.mark.parametrize(
    "text", ["L9H10", "l9h10", "9.10", "a9.h10", "A9.10", "a9.10", "9.h10", " L9H10 ", "L09H10", (9, 10)]
)
def test_every_usual_form_is_understood(text):
    assert parse_head(text) == (9, 10)


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (9, 9), (23, 15)])
def test_a_name_reads_back(layer, head):
    assert parse_head(head_name(layer, head)) == (layer, head)


@pytest.mark.parametrize("text", ["", "9", "L9", "9.9.9", "L9H", "head nine", "-1.2", "L1H-2", "9,9"])
def test_what_names_no_head_is_said(text):
    with pytest.raises(WorkbenchError, match="write it like L9H9"):
        parse_head(text)
