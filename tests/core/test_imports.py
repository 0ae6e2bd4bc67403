"""What the core brings with it."""

import subprocess
import sys

import pytest

MODULES = "best, bands, limits, matching, naming, packing, recording, sources, targets, trajectory"


@pytest.mark.parametrize("unwanted", ["torch", "grpc", "google.protobuf", "sqlalchemy"])
def test_the_core_needs_numpy_only(unwanted: str) -> None:
    code = f"import sys, flerm_core; from flerm_core import {MODULES}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_stand_at_the_top() -> None:
    import flerm_core

    assert sorted(flerm_core.__all__) == ["Trajectory", "match_targets"]
