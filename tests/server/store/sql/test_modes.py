"""A registry's files are for their owner, whatever the umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flerm_server.cli import app
from flerm_server.store.sql.store import open_store
from tests.server.samples import batch, rows, spec


@pytest.fixture(params=[0o000, 0o022])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {each.name: f"{each.stat().st_mode & 0o777:04o}" for each in folder.iterdir()}


@pytest.mark.usefixtures("umask")
def test_nobody_else_reads_a_database_its_log_or_its_copies(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    started = spec("team/resmlp")
    store.start(started)
    store.append_many([batch(started.id, *rows(1, 2))])
    opened = ("runs.db", "runs.db-wal", "runs.db-shm", "runs.db.lock")
    assert modes(tmp_path) == dict.fromkeys(opened, "0600")
    for command in (
        ("backup", f"{tmp_path}/copy.db", "--db", f"sqlite:///{tmp_path}/runs.db"),
        ("restore", f"{tmp_path}/copy.db", "--db", f"sqlite:///{tmp_path}/new.db"),
    ):
        ended = CliRunner().invoke(app, ["db", *command])
        assert ended.exit_code == 0, ended.output
    found = modes(tmp_path)
    assert {"copy.db", "new.db"} <= set(found) and set(found.values()) == {"0600"}
    store.close()
