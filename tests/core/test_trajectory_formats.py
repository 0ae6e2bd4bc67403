"""A trajectory as a pandas DataFrame."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from flerm_core import Trajectory
from flerm_core.errors import Unsupported


def trajectory() -> Trajectory:
    values = [[1.0, np.nan], [2.0, 4.0]]
    return Trajectory(
        ["a.weight", "a.bias"],
        [(2, 2), (2,)],
        [1, 101],
        values,
        losses=[0.5, np.nan],
        tokens=[64, -1],
    )


def test_a_row_for_each_step_and_a_column_for_each_tensor_behind_what_was_logged():
    table = trajectory().to_dataframe()
    assert list(table.columns) == ["loss", "learning_rate", "tokens", "a.weight", "a.bias"]
    assert (table.index.name, table.index.tolist()) == ("step", [1, 101])
    assert (table.loc[101, "a.bias"], table.loc[1, "loss"], table.loc[1, "tokens"]) == (
        4.0,
        0.5,
        64,
    )
    assert table["a.weight"].dtype == np.float32


def test_what_was_not_logged_or_measured_is_missing():
    missing = trajectory().to_dataframe().isna()
    assert missing.loc[1].tolist() == [False, True, False, False, True]
    assert missing.loc[101].tolist() == [True, True, True, False, False]


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Unsupported, match="pip install pandas"):
        trajectory().to_dataframe()
