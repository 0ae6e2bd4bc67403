"""`flerm token` on the server's console, and a copy of a registry in use."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flerm_core.records.queries import RecordingFilter
from flerm_server.cli import app
from flerm_server.store.sql.store import open_store
from tests.conftest import PostgresCluster, StartRegistry
from tests.server.conftest import migrate
from tests.server.samples import batch, family, row, spec


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A SQLite file that is not there yet, or an empty registry on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    postgres: PostgresCluster = request.getfixturevalue("postgres")
    return migrate(postgres.new_database())


def test_a_token_is_made_shown_once_listed_and_revoked(db: str):
    made = run("token", "create", "jobs", "--scope", "write", "--family", "vision", "--db", db)
    assert (made.exit_code, made.stdout.count("\n")) == (0, 1)
    secret = made.stdout.strip()
    kind, identifier, own = secret.split("_", 2)
    assert (kind, len(identifier), len(own)) == ("flerm", 12, 43)
    listed = run("token", "list", "--db", db).stdout
    assert (
        listed.startswith(f"{identifier}  write  jobs  family vision  made 20")
        and own not in listed
    )
    assert run("token", "revoke", identifier, "--db", db).stdout == f"token {identifier} revoked\n"
    assert (
        run("token", "revoke", identifier, "--db", db).stdout
        == f"token {identifier} was revoked already\n"
    )
    (found,) = json.loads(run("token", "list", "--json", "--db", db).stdout)
    assert (found["id"], found["scope"], found["family"]) == (identifier, "write", "vision")
    assert found["revoked_at"] and "digest" not in found
    unknown = run("token", "revoke", "nobody", "--db", db)
    assert (unknown.exit_code, "token 'nobody' is not in this registry" in unknown.stderr) == (
        3,
        True,
    )


def test_what_is_no_token_is_refused(tmp_path: Path):
    db = f"sqlite:///{tmp_path}/registry.db"
    missing = run("token", "list", "--db", db)
    assert (missing.exit_code, "there is no such file" in missing.stderr) == (3, True)
    for arguments, sentence in (
        (
            ("x", "--scope", "root"),
            "scope: 'root' is not allowed; allowed are read, write or admin",
        ),
        (("", "--scope", "read"), "name: ''"),
        (("x", "--scope", "read", "--family", "a/b/c"), "family: 'a/b/c'"),
    ):
        ended = run("token", "create", *arguments, "--db", db)
        assert (ended.exit_code, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
        assert sentence.split(" is")[0] in ended.stderr
    assert (
        run("token", "list", "--db", db).stdout
        == "no tokens: a registry on 127.0.0.1 answers everybody on this host\n"
    )


def test_a_copy_made_while_rows_come_in_is_a_whole_registry(
    start_registry: StartRegistry, tmp_path: Path
):
    """Copied under load, served again: every row up to some moment, and nothing torn."""
    registry = start_registry()
    store = open_store(registry.db)
    sent = spec(family())
    store.start(sent)
    over = threading.Event()

    def write() -> None:
        step = 0
        while not over.is_set():
            step += 1
            store.append_many([batch(sent.id, row(step))])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        while store.recording(sent.id).rows < 50:
            pass
        assert run("db", "backup", f"{tmp_path}/copy.db", "--db", registry.db).exit_code == 0
    finally:
        over.set()
        writer.join()
    rows = store.recording(sent.id).rows
    store.close()
    restored = start_registry(db=f"sqlite:///{tmp_path}/copy.db")
    assert httpx.get(f"{restored.http}/readyz").status_code == 200
    copy = open_store(restored.db)
    (found,) = copy.recordings(RecordingFilter(family=sent.family)).items
    steps = copy.trajectory(sent.id).steps.tolist()
    assert 50 <= len(steps) == found.rows <= rows
    assert steps == list(range(1, len(steps) + 1))
    copy.close()
