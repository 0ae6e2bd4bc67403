"""What tests find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_registry_of_whoever_runs_the_tests_is_out_of_their_reach():
    own = {"FLERM_REGISTRY": "grpc://registry.example", "FLERM_TOKEN": "x", "FLERM_TEST_A": "1"}
    look = "import conftest, os; print(sorted(each for each in os.environ if 'FLERM_' in each))"
    found = subprocess.run(
        [sys.executable, "-c", look],
        cwd=ROOT,
        env=os.environ | own | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FLERM_TEST_A" in found.stdout
    assert "FLERM_REGISTRY" not in found.stdout
    assert "FLERM_TOKEN" not in found.stdout
