"""Values of a dataclass from columns: one sequence for each field.

A listing has thousands of values. To call the constructor for each of them costs five times as much
as to set one field of all of them after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any, TypeVar

Value = TypeVar("Value")


def require_plain(value_type: type[Any]) -> None:
    """Raises `TypeError` for a dataclass whose constructor does more than to set its fields."""
    if hasattr(value_type, "__post_init__"):
        raise TypeError(f"{value_type.__name__} has __post_init__, which columns would pass over")


def values_from_columns(
    value_type: type[Value], columns: Mapping[str, Sequence[Any]]
) -> list[Value]:
    """The values whose fields are the entries of `columns` at the same place.

    value_type: a dataclass that `require_plain` accepts.
    columns: one for each field, by its name.

    Raises `ValueError` where a field has no column, or where columns differ in length.
    """
    names = [each.name for each in fields(value_type)]  # type: ignore[arg-type]
    lengths = {name: len(column) for name, column in columns.items()}
    if set(lengths) != set(names) or len(set(lengths.values())) > 1:
        raise ValueError(f"{value_type.__name__} has the fields {names}, the columns are {lengths}")
    values = list(map(object.__new__, repeat(value_type, lengths[names[0]])))
    for name, column in columns.items():
        # Not `setattr`, which a frozen dataclass refuses. The queue runs through the map.
        deque(map(object.__setattr__, values, repeat(name), column), maxlen=0)
    return values
