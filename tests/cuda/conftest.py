"""`make test-cuda`: what only a GPU shows, and one table of memory and time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

Row = tuple[str, str]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU. FLERM_TEST_CUDA_ON=cpu runs what does not need one, to find errors before."""
    asked = os.environ.get("FLERM_TEST_CUDA_ON", "cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU: `make test-cuda` needs one")
    return torch.device(asked)


@pytest.fixture(scope="session")
def table() -> Iterator[list[Row]]:
    """Rows (what, figure), printed when all tests are over."""
    rows: list[Row] = []
    yield rows
    width = max((len(what) for what, _ in rows), default=0)
    print("\n" + "\n".join(f"{what.ljust(width)}  {figure}" for what, figure in rows))
