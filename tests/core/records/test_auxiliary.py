"""Auxiliary values of rows, one by one and as columns."""

from __future__ import annotations

import numpy as np

from flerm_core.records.auxiliary import Auxiliary, AuxiliaryColumns
from flerm_core.records.recording import Measurement


def test_columns_have_nan_where_a_row_has_no_value() -> None:
    vector = np.array([1, 2], np.float32)
    rows = [None, Auxiliary({"sharpness": 3.0}, {}), Auxiliary({}, {"multiplier": vector})]
    columns = AuxiliaryColumns.of([1, 101, 201], rows, 2)
    assert columns.steps.tolist() == [1, 101, 201]
    np.testing.assert_array_equal(columns.scalars["sharpness"], [np.nan, 3, np.nan])
    np.testing.assert_array_equal(
        columns.vectors["multiplier"], [[np.nan, np.nan], [np.nan, np.nan], [1, 2]]
    )
    assert columns.vectors["multiplier"].dtype == np.float32


def test_rows_without_auxiliary_values_have_no_columns() -> None:
    columns = AuxiliaryColumns.of([1], [None], 2)
    assert (columns.scalars, columns.vectors) == ({}, {})


def test_a_measurement_s_auxiliary_values_are_its_scalars_and_vectors() -> None:
    plain = Measurement(step=1, values=np.ones(2, np.float32))
    assert plain.auxiliary is None
    sharp = Measurement(step=1, values=plain.values, scalars={"sharpness": 3.0})
    assert sharp.auxiliary == ({"sharpness": 3.0}, {})
