"""What the core brings with it."""

import subprocess
import sys

import pytest

# Every module of the core but those of `measure`, which alone may import torch.
EVERYTHING = """
import importlib, pkgutil, sys
import flerm_core
for module in pkgutil.walk_packages(flerm_core.__path__, "flerm_core."):
    if not module.name.startswith("flerm_core.measure"):
        importlib.import_module(module.name)
sys.exit(sys.argv[1] in sys.modules)
"""


@pytest.mark.parametrize("unwanted", ["torch", "grpc", "google.protobuf", "sqlalchemy"])
def test_the_core_needs_numpy_only(unwanted: str) -> None:
    command = [sys.executable, "-c", EVERYTHING, unwanted]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_public_names_stand_at_the_top() -> None:
    import flerm_core

    assert sorted(flerm_core.__all__) == ["Trajectory", "match_targets"]
