"""The schema: made from nothing, upgraded after a copy, refused when this version cannot serve it."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import Result
from typer.testing import CliRunner

from flerm_core.errors import InvalidInput, Refused
from flerm_server.cli import app
from flerm_server.store import schema
from flerm_server.store.engine import open_engine, parse_url
from flerm_server.store.sql import open_store
from flerm_server.store.tables import metadata
from tests.conftest import PostgresCluster
from tests.server.conftest import migrate
from tests.server.given import family, spec


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    return request.getfixturevalue("postgres").new_database()


def test_the_migrations_make_the_tables_that_the_code_uses(empty: str):
    engine = open_engine(parse_url(migrate(empty)))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert schema.check(engine) == schema.SchemaState("0001", "0001", "0001")
    assert schema.upgrade(engine)[0].current == "0001"
    engine.dispose()


def test_several_upgrades_at_once_wait_for_one_another(empty: str):
    errors: list[Exception] = []

    def run() -> None:
        try:
            migrate(empty)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    open_store(empty).close()


def test_an_empty_postgresql_database_is_refused_with_the_command_to_run(postgres: PostgresCluster):
    with pytest.raises(Refused, match="the database is empty: make its tables with `flerm db upgrade`"):
        open_store(postgres.new_database())


def test_a_schema_that_asks_for_newer_servers_is_refused(empty: str):
    engine = open_engine(parse_url(migrate(empty)))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0009'"))
    open_store(empty).close()  # newer, but made so that this version can go on
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE schema_support SET oldest_server = '0008'"))
    engine.dispose()
    with pytest.raises(Refused, match=r"schema 0009, which only servers that know 0008 can serve; this one knows 0001"):
        open_store(empty)


def test_an_existing_file_is_copied_before_it_is_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"sqlite:///{tmp_path}/old.db"
    store = open_store(url)
    sent = spec(family())
    store.start(sent)
    # A version that knows one revision more; there is none yet, so one is laid beside the real ones.
    versions = tmp_path / "migrations"
    versions.mkdir()
    for name in ("env.py", "script.py.mako"):
        (versions / name).write_text((schema.MIGRATIONS / name).read_text())
    (versions / "versions").mkdir()
    first = schema.MIGRATIONS / "versions" / "0001_first.py"
    (versions / "versions" / "0001_first.py").write_text(first.read_text())
    (versions / "versions" / "0002_more.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision = '0002'\ndown_revision = '0001'\n"
        "def upgrade():\n    op.add_column('families', sa.Column('colour', sa.Text))\n"
    )
    monkeypatch.setattr(schema, "MIGRATIONS", versions)
    upgraded = open_store(url)
    assert upgraded.info().schema_revision == "0002"
    assert upgraded.recording(sent.id).spec == sent
    # The server that was running before goes on beside it: the revision only added something.
    assert store.recording(sent.id).spec == sent
    store.close()
    upgraded.close()
    with closing(sqlite3.connect(tmp_path / "old.db.before-upgrade-from-0001")) as copy:
        assert copy.execute("SELECT id FROM recordings").fetchall() == [(sent.id,)]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://h/d", "sqlite:///FILE or postgresql://"),
        ("nonsense", "sqlite:///FILE or postgresql://"),
        ("sqlite://", "a registry needs a file"),
        ("sqlite:///:memory:", "a registry needs a file"),
    ],
)
def test_a_url_of_another_kind_is_refused(url: str, sentence: str):
    with pytest.raises(InvalidInput, match=sentence):
        open_store(url)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_the_db_commands(tmp_path: Path):
    db = f"sqlite:///{tmp_path}/registry.db"
    missing = run("db", "current", "--db", db)
    assert missing.exit_code == 3
    assert missing.stderr == f"Error: db {db}: there is no such file; `flerm serve` or `flerm db upgrade` makes it\n"
    assert run("db", "upgrade", "--db", db).stdout == "schema (empty) -> 0001\n"
    assert run("db", "upgrade", "--db", db).stdout == "schema 0001, up to date\n"
    assert run("db", "check", "--db", db).stdout == "schema 0001: this version can serve it\n"
    assert run("db", "backup", f"{tmp_path}/copy.db", "--db", db).exit_code == 0
    assert run("db", "current", "--db", f"sqlite:///{tmp_path}/copy.db").stdout == "schema 0001, this version has 0001\n"
    again = run("db", "backup", f"{tmp_path}/copy.db", "--db", db)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
