"""The estimators that the meter can use are those that the records allow and the docs describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from flerm_core.measure.estimators.registry import ESTIMATORS
from flerm_core.records import recording


def test_the_registry_and_the_records_name_the_same_estimators() -> None:
    assert tuple(ESTIMATORS) == recording.ESTIMATORS


def test_each_estimator_is_registered_under_its_own_name() -> None:
    assert all(estimator.name == name for name, estimator in ESTIMATORS.items())


@pytest.mark.parametrize("page", ["estimators.md", "glossary.md"])
def test_each_estimator_has_a_row_of_a_table_in_the_docs(page: str) -> None:
    text = (Path(__file__).parents[4] / "docs" / page).read_text()
    assert [name for name in ESTIMATORS if f"\n| `{name}`" not in text] == []
