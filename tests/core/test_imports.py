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
print(sorted({"torch", "grpc", "google.protobuf", "sqlalchemy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(EVERYTHING, id="everything"),
        pytest.param(
            "import sys, flerm_core; print([n for n in sys.modules if n.startswith('numpy')])",
            id="the package alone",
        ),
    ],
)
def test_the_core_needs_numpy_only_and_by_itself_not_even_numpy(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_stand_at_the_top() -> None:
    import flerm_core

    assert sorted(flerm_core.__all__) == ["Trajectory", "match_targets"]
