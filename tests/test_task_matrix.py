"""What the matrix of tasks accepts and how it packs arrays, without a browser."""

import numpy as np
import pytest
import traitlets as T

from widgets import TaskMatrix, task_matrix
from workbench.app.hosting import panelize

NAMES = ["a", "b", "c"]
VALUES = np.linspace(-0.4, 0.4, 9).reshape(3, 3)


def made(**more) -> dict:
    return task_matrix.pack(VALUES, NAMES) | more


def test_packed_arrays_are_little_endian_and_come_back() -> None:
    clear, ceiling = (abs(VALUES) > 0.15).astype(int), [0.5, np.nan, 0.7]
    told = {"corrected: {}": 2 * VALUES, "{}% in conflict": 50 - VALUES}
    parts = {"low": VALUES - 1, "high": VALUES + 1, "clear": clear, "diagonal": ceiling}
    traits = task_matrix.pack(VALUES.astype(">f8"), NAMES, **parts, details=told)
    for name, expected in {"values": VALUES, **parts}.items():
        found = np.frombuffer(traits[name], "u1" if name == "clear" else "<f4")
        np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-6)
    assert (traits["names"], traits["details"]) == (NAMES, list(told))
    found = np.frombuffer(traits["detail_values"], "<f4").reshape(2, 3, 3)
    np.testing.assert_allclose(found, np.stack(list(told.values())), rtol=1e-6)
    matrix = TaskMatrix(**traits, selected=[2, 0])
    assert matrix.values == traits["values"] and matrix.selected == [2, 0]
    assert made()["low"] == made()["clear"] == made()["detail_values"] == b""


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"values": np.zeros((2, 3))}, r"\[row, column\] of the same tasks, found shape \(2, 3\)"),
        ({"names": ["a"]}, "values must have 4 bytes for 1 names .*, found 36"),
        ({"low": np.zeros((2, 3)), "high": VALUES}, r"'low' must have the shape \(3, 3\), found \(2, 3\)"),
        ({"low": VALUES}, "low and high must be given together"),
        ({"clear": np.full((3, 3), 2)}, r"'clear' must be 0 or 1, found \[2\]"),
        ({"diagonal": VALUES}, r"'diagonal' must have the shape \(3,\), found \(3, 3\)"),
        ({"details": {"x: {}": [1.0]}}, r"'x: {}' must have the shape \(3, 3\), found \(1,\)"),
        ({"details": {"no place": VALUES}}, "one {} for its number, found 'no place'"),
    ],
)
def test_arrays_that_are_no_matrix_of_tasks_are_refused(arrays: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_matrix.pack(**{"values": VALUES, "names": NAMES} | arrays)


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (made(values=b"\0" * 35), "values must have 36 bytes for 3 names .*, found 35"),
        (made(high=b"\0" * 36), "low and high must be given together"),
        (made(clear=b"\2" * 9), r"clear must be 0 or 1, found \[2\]"),
        (made(diagonal=b"\0" * 36), "diagonal must have 12 bytes .*, found 36"),
        (made(details=["{}"]), "detail_values must have 36 bytes for 3 names and 1 details, found 0"),
        (made(details=["{} of {}"], detail_values=b"\0" * 36), "found '{} of {}'"),
        (made(selected=[0]), r"\[row, column\] of two different tasks from 0 to 2, found \[0\]"),
        (made(selected=[1, 1]), r"two different tasks .*found \[1, 1\]"),
        (made(selected=[0, 3]), r"found \[0, 3\]"),
        (made(limit=float("inf")), "limit must be a finite number"),
    ],
)
def test_a_matrix_that_does_not_fit_together_is_refused(traits: dict, message: str) -> None:
    with pytest.raises(T.TraitError, match=message):
        TaskMatrix(**traits)


def test_another_number_of_tasks_is_shown_at_once_only() -> None:
    matrix = TaskMatrix(**made())
    with pytest.raises(T.TraitError, match=r"values must have 16 bytes for 2 names .*show"):
        matrix.names = ["a", "b"]
    matrix.show(**task_matrix.pack([[1, -0.5], [-0.5, 1]], ["x", "y"]), selected=[1, 0])
    assert (matrix.names, matrix.selected) == (["x", "y"], [1, 0])
    np.testing.assert_array_equal(np.frombuffer(matrix.values, "<f4"), [1, -0.5, -0.5, 1])


def test_bytes_from_the_page_become_bytes() -> None:
    matrix = TaskMatrix(**made())
    matrix.set_state({"clear": memoryview(b"\1" * 9)})
    assert matrix.clear == b"\1" * 9


def test_a_component_has_the_widgets_traits_and_defaults() -> None:
    component, original = panelize(TaskMatrix)(), TaskMatrix()
    names = {name for name, trait in TaskMatrix.class_traits(sync=True).items() if trait.this_class is TaskMatrix}
    assert len(names) == 16
    assert {name: getattr(component, name) for name in names} == {name: getattr(original, name) for name in names}
