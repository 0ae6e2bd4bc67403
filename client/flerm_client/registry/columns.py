"""The columns that a user of `RegistryClient` gives, as the core's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flerm_core.errors import InvalidInput
from flerm_core.parameter_bands import bands_of
from flerm_core.records.measurement_validation import validate_measurements
from flerm_core.records.recording import Measurement, ParameterList, now


def parameter_list(
    names: Sequence[str], shapes: Sequence[Sequence[int]], bands: Sequence[str] | None
) -> ParameterList:
    """The parameters of a recording; bands None: found from names and shapes.

    Raises `InvalidInput` where there are not as many shapes as names.
    """
    tuples = tuple(tuple(int(size) for size in shape) for shape in shapes)
    if len(tuples) != len(names):
        raise InvalidInput(
            f"shapes: {len(tuples)} given for {len(names)} names; one for each is allowed"
        )
    found = bands if bands is not None else bands_of(list(names), tuples)
    return ParameterList(tuple(names), tuples, tuple(found))


def measurements(
    steps: Sequence[int],
    values: ArrayLike,
    *,
    losses: ArrayLike | None = None,
    learning_rates: ArrayLike | None = None,
    tokens: Sequence[int] | None = None,
    scalars: Mapping[str, ArrayLike] | None = None,
    vectors: Mapping[str, ArrayLike] | None = None,
) -> list[Measurement]:
    """One measurement for each step, measured now. `RegistryClient.append` has the arguments.

    Raises `InvalidInput` for a column of another length than `steps`, a vector of another shape
    than `values`, and a number that is not allowed.
    """
    table = np.asarray(values, np.float32)
    if table.ndim != 2 or len(table) != len(steps):
        raise InvalidInput(
            f"values: an array of shape {list(table.shape)}; "
            f"allowed is [{len(steps)} steps, number of names]"
        )
    measured_at = now()
    loss = _floats("losses", losses, len(steps))
    rate = _floats("learning_rates", learning_rates, len(steps))
    counts = _floats("tokens", tokens, len(steps))
    scalars_by_row = _scalars(scalars, len(steps))
    vectors_by_name = _vectors(vectors, table)
    rows = [
        Measurement(
            step=int(step),
            values=table[at],
            loss=loss[at],
            learning_rate=rate[at],
            tokens=None if tokens is None or counts[at] is None else int(tokens[at]),
            measured_at=measured_at,
            scalars=scalars_by_row[at],
            vectors={name: vector[at] for name, vector in vectors_by_name.items()},
        )
        for at, step in enumerate(steps)
    ]
    validate_measurements(rows, table.shape[1])
    return rows


def _scalars(scalars: Mapping[str, ArrayLike] | None, length: int) -> list[dict[str, float]]:
    """The scalars of each row by name, without those that are NaN."""
    columns = {
        name: _floats(f"scalars {name!r}", column, length)
        for name, column in (scalars or {}).items()
    }
    return [
        {name: value for name, column in columns.items() if (value := column[at]) is not None}
        for at in range(length)
    ]


def _vectors(
    vectors: Mapping[str, ArrayLike] | None, values: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The vectors as arrays, each of the shape of `values`."""
    tables = {name: np.asarray(table, np.float32) for name, table in (vectors or {}).items()}
    for name, table in tables.items():
        if table.shape != values.shape:
            raise InvalidInput(
                f"vectors {name!r}: an array of shape {list(table.shape)}; "
                f"allowed is {list(values.shape)}, that of values"
            )
    return tables


def _floats(name: str, values: ArrayLike | None, length: int) -> list[float | None]:
    """One number for each row, None for NaN (not logged)."""
    if values is None:
        return [None] * length
    array = np.asarray(values, np.float64)
    if array.shape != (length,):
        raise InvalidInput(
            f"{name}: an array of shape {list(array.shape)}; "
            f"allowed is [{length}], one for each step"
        )
    return [None if np.isnan(value) else float(value) for value in array]
