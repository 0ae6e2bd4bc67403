"""Checks of the arrays of a trajectory, and the thinning of rows. The arrays that come back are
read-only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flerm_core.errors import InvalidInput


def check_length(field: str, length: int, wanted: int, of: str) -> None:
    """Raises `InvalidInput` unless `length`, the number of entries of `field`, is `wanted`.

    of: what there must be one entry for, such as "names".
    """
    if length != wanted:
        raise InvalidInput(f"{field}: {length} given for {wanted} {of}; one each is allowed")


def steps_of(steps: ArrayLike) -> NDArray[np.int64]:
    """Steps [T], ascending from 0, as int64. Raises `InvalidInput` for anything else."""
    found = np.asarray(steps)
    if found.size == 0:
        found = found.astype(np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InvalidInput(
            f"steps: an array of {found.ndim} dimensions of {found.dtype} given; a list of "
            "integers is allowed"
        )
    if (found < 0).any():
        raise InvalidInput(f"steps: {found.min()} is negative; allowed are steps from 0")
    if (found[1:] <= found[:-1]).any():
        at = int(np.flatnonzero(found[1:] <= found[:-1])[0])
        raise InvalidInput(f"steps: {found[at + 1]} follows {found[at]}; steps must ascend")
    return _read_only(found.astype(np.int64, copy=False))


def values_of(values: ArrayLike, rows: int, columns: int) -> NDArray[np.float32]:
    """FSLRs [rows, columns] as float32: finite from 0, or NaN.

    Raises `InvalidInput` for anything else.
    """
    with np.errstate(
        over="ignore"
    ):  # a value that overflows becomes infinite, and is refused below
        found = np.asarray(values, np.float32)
    if found.size == 0 and rows * columns == 0:
        found = found.reshape(rows, columns)
    if found.shape != (rows, columns):
        raise InvalidInput(
            f"values: shape {list(found.shape)} given; [steps, names] = [{rows}, {columns}] is "
            "allowed"
        )
    wrong = np.isinf(found) | (found < 0)
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        raise InvalidInput(
            f"values: {found[row, column]} at row {row}, column {column}; allowed are finite "
            "numbers from 0, and NaN"
        )
    return _read_only(found)


def column_of(
    field: str, values: ArrayLike | None, rows: int, missing: float, dtype: type[np.generic]
) -> NDArray[Any]:
    """`values` [rows] as `dtype`; None: `missing` for every row.

    Raises `InvalidInput` for another shape.
    """
    found = np.full(rows, missing, dtype) if values is None else np.asarray(values, dtype)
    if found.shape != (rows,):
        raise InvalidInput(
            f"{field}: shape {list(found.shape)} given; one value for each of the {rows} steps is "
            "allowed"
        )
    return _read_only(found)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def thin(rows: int, max_points: int) -> NDArray[np.int64]:
    """The indices of at most `max_points` of `rows` rows, evenly spread, both ends included."""
    if rows <= max_points:
        return np.arange(rows)
    if max_points == 1:
        return np.array([rows - 1])
    return np.unique(np.linspace(0, rows - 1, max_points).round().astype(np.int64))
