"""Registries in which small sweeps were carried out."""

from __future__ import annotations

import pytest

from flerm_experiments.sweep.runner import run_sweep
from tests.experiments.sweeps import LONGER, SWEEP, InProcessExecutor


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder registry in which the sweep was carried out once."""
    address = f"file://{tmp_path_factory.mktemp('sweep')}/registry"
    assert run_sweep(SWEEP, address, InProcessExecutor()).failures == {}
    return address


@pytest.fixture(scope="session")
def longer_registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder registry in which cells were trained twice as long as their base."""
    address = f"file://{tmp_path_factory.mktemp('longer')}/registry"
    assert run_sweep(LONGER, address, InProcessExecutor()).failures == {}
    return address
