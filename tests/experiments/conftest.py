"""Registries in which small sweeps were carried out, and files of the paper's form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flerm_experiments.sweep.runner import run_sweep
from tests.experiments.sweeps import LONGER, PAPER_NAMES, SWEEP, InProcessExecutor


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


@pytest.fixture
def paper_files(tmp_path: Path) -> list[str]:
    """Files of two seeds as the paper's scripts name and write them.

    Each holds a list of numbers for every tensor.
    """
    found = []
    for seed in (0, 1):
        path = tmp_path / f"basemodelmlpcifar10empiricalmasses_lr_0.01_seed_{seed}.ptnorms"
        torch.save({name: [4.0 * 4**seed, 2.0, 1.0] for name in PAPER_NAMES}, path)
        found.append(str(path))
    return found
