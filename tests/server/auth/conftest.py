"""One registry with tokens for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.auth.locked_registry import Locked, locked_registry


@pytest.fixture(scope="package")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    with locked_registry(tmp_path_factory.mktemp("locked")) as running:
        yield running
