"""Values made from columns are those that the constructor makes."""

from dataclasses import dataclass

import pytest

from flerm_core.records.recording import EstimatorSettings
from flerm_core.records.value_columns import require_plain, values_from_columns


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 7


@dataclass
class Checked:
    x: int

    def __post_init__(self) -> None:
        self.x += 1


def test_values_are_those_of_the_constructor() -> None:
    made = values_from_columns(Point, {"y": [4, 5, 6], "x": [1, 2, 3]})
    assert made == [Point(1, 4), Point(2, 5), Point(3, 6)]
    assert values_from_columns(Point, {"x": [], "y": []}) == []
    with pytest.raises(AttributeError):
        made[0].x = 2  # type: ignore[misc]


def test_a_field_without_a_whole_column_is_refused() -> None:
    """No value may lack a field, or have its default, because a column was forgotten."""
    for columns in ({"x": [1]}, {"x": [1, 2], "y": [1]}, {"x": [1], "y": [1], "z": [1]}):
        with pytest.raises(ValueError, match=r"Point has the fields \['x', 'y'\], the columns are"):
            values_from_columns(Point, columns)


def test_a_constructor_that_does_more_is_refused() -> None:
    require_plain(EstimatorSettings)
    with pytest.raises(TypeError, match="Checked has __post_init__"):
        require_plain(Checked)
