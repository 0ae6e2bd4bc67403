"""The estimators that the meter can use are those whose names the records allow."""

from __future__ import annotations

from flerm_core.measure.estimators.registry import ESTIMATORS
from flerm_core.records import recording


def test_the_registry_and_the_records_name_the_same_estimators() -> None:
    assert tuple(ESTIMATORS) == recording.ESTIMATORS


def test_each_estimator_is_registered_under_its_own_name() -> None:
    assert all(estimator.name == name for name, estimator in ESTIMATORS.items())
