"""Names in CSV files: spreadsheets run none of them."""

from __future__ import annotations

import pytest

from flerm_core.csv_cells import text_cell


@pytest.mark.parametrize(
    "name", ['=HYPERLINK("http://evil.example","x")', "+1", "-1", "@SUM(1)", "\tx", "\rx"]
)
def test_a_formula_becomes_a_text(name: str):
    assert text_cell(name) == f"'{name}"


@pytest.mark.parametrize("name", ["", "layers.0.weight", "a=b", "x-1", "'=", " =1"])
def test_other_names_stay(name: str):
    assert text_cell(name) == name
