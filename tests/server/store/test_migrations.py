"""The schema: made, upgraded after a copy, refused when this version cannot serve it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import Result
from typer.testing import CliRunner

from flerm_core.errors import InvalidInput, Refused
from flerm_core.records.queries import RecordingFilter, TargetQuery
from flerm_server.cli import app
from flerm_server.store import queries
from flerm_server.store.sql import revisions, schema
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine, transaction
from flerm_server.store.sql.store import open_store
from flerm_server.store.sql.tables import metadata
from tests.conftest import PostgresCluster
from tests.server.conftest import migrate
from tests.server.store.dump_schema import SCHEMAS

HEAD = schema.head()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        (tmp_path / "new.db").touch()
        return f"sqlite:///{tmp_path}/new.db"
    return request.getfixturevalue("postgres").new_database()


def errors_of_four(act: Callable[[], object]) -> list[Exception]:
    """What four threads that `act` at once raise."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_the_migrations_make_the_tables_that_the_code_uses(empty: str):
    engine = open_engine(parse_url(migrate(empty)))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert schema.check(engine) == schema.SchemaState(HEAD, HEAD, schema.OLDEST)
    assert schema.upgrade(engine)[0].current == HEAD
    engine.dispose()


def test_a_new_sqlite_file_is_what_the_migrations_make(tmp_path: Path):
    def content(name: str, make: Callable[[sa.Engine], object]) -> dict[str, object]:
        (tmp_path / f"{name}.db").touch()
        engine = open_engine(parse_url(f"sqlite:///{tmp_path}/{name}.db"))
        make(engine)
        engine.dispose()
        found: dict[str, object] = {}
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as file:
            for (table,) in file.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                found[table] = [
                    file.execute(f"PRAGMA table_xinfo({table})").fetchall(),
                    sorted(row[2:] for row in file.execute(f"PRAGMA foreign_key_list({table})")),
                    sorted(
                        (*index[1:], *file.execute(f"PRAGMA index_xinfo('{index[1]}')").fetchall())
                        for index in file.execute(f"PRAGMA index_list({table})")
                    ),
                ]
            found["triggers"] = file.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
            ).fetchall()
            for table in ("alembic_version", "schema_support"):
                found[f"rows of {table}"] = file.execute(f"SELECT * FROM {table}").fetchall()
        return found

    def step_by_step(engine: sa.Engine) -> None:
        with transaction(engine, writes=True) as connection:
            schema.migrate(connection)

    assert content("made", schema.upgrade) == content("migrated", step_by_step)


def test_several_upgrades_at_once_wait_for_one_another(empty: str):
    assert not errors_of_four(lambda: migrate(empty))
    open_store(empty).close()


def test_several_servers_on_one_old_file_copy_it_once(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.executescript((SCHEMAS / "0001.sql").read_text())
    assert not errors_of_four(lambda: open_store(f"sqlite:///{tmp_path}/old.db").close())
    (copy,) = tmp_path.glob("old.db.before-*")
    with closing(sqlite3.connect(copy)) as old:
        assert old.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]


def test_an_empty_postgresql_database_is_refused_with_the_command_to_run(postgres: PostgresCluster):
    with pytest.raises(
        Refused, match="the database is empty: make its tables with `flerm db upgrade`"
    ):
        open_store(postgres.new_database())


def test_a_schema_that_asks_for_newer_servers_is_refused(empty: str):
    engine = open_engine(parse_url(migrate(empty)))
    with transaction(engine, writes=True) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9009'"))
    open_store(empty).close()  # newer, but made so that this version can go on
    with transaction(engine, writes=True) as connection:
        connection.execute(sa.text("UPDATE schema_support SET oldest_server = '9008'"))
    engine.dispose()
    with pytest.raises(
        Refused,
        match=f"schema 9009, which only servers that know 9008 can serve; this one knows {HEAD}",
    ):
        open_store(empty)


def test_the_database_of_another_program_is_refused(empty: str):
    engine = open_engine(parse_url(empty))
    with transaction(engine, writes=True) as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('4465047574b1')"))
    engine.dispose()
    with pytest.raises(Refused, match="the database belongs to another program"):
        migrate(empty)


def test_every_revision_has_a_database_of_its_time():
    known = [each.name[:4] for each in sorted((revisions.MIGRATIONS / "versions").glob("0*.py"))]
    assert [path.stem for path in sorted(SCHEMAS.glob("*.sql"))] == known, (
        "run: python -m tests.server.store.dump_schema"
    )


@pytest.mark.parametrize(
    "dump",
    [path for path in sorted(SCHEMAS.glob("*.sql")) if path.stem != HEAD],
    ids=lambda path: path.stem,
)
def test_every_past_schema_is_copied_and_upgraded_with_its_content(dump: Path, tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.executescript(dump.read_text())
    store = open_store(f"sqlite:///{tmp_path}/old.db")
    assert store.info().schema_revision == schema.head()
    (found,) = store.recordings(RecordingFilter(family="team/resmlp")).items
    assert (found.spec.lr, found.spec.tags, found.status, found.final_loss, found.rows) == (
        3e-4,
        {"a": "b"},
        "completed",
        0.5,
        2,
    )
    trajectory = store.trajectory(found.spec.id)
    assert trajectory.steps.tolist() == [1, 101]
    np.testing.assert_array_equal(
        trajectory.values, np.array([[1, 0.5, np.nan], [101, 50.5, np.nan]], np.float32)
    )
    assert queries.targets(store, TargetQuery(family="team/resmlp", lr=3e-4)).sources == (
        found.spec.id,
    )
    store.close()
    with closing(sqlite3.connect(tmp_path / f"old.db.before-upgrade-from-{dump.stem}")) as copy:
        assert copy.execute("SELECT id FROM recordings").fetchall() == [(found.spec.id,)]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(dump.stem,)]


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
    assert (
        missing.stderr
        == f"Error: db {db}: there is no such file; `flerm serve` or `flerm db upgrade` makes it\n"
    )
    assert run("db", "upgrade", "--db", db).stdout == f"schema (empty) -> {HEAD}\n"
    assert run("db", "upgrade", "--db", db).stdout == f"schema {HEAD}, up to date\n"
    assert run("db", "check", "--db", db).stdout == f"schema {HEAD}: this version can serve it\n"
    assert run("db", "backup", f"{tmp_path}/copy.db", "--db", db).exit_code == 0
    assert (
        run("db", "current", "--db", f"sqlite:///{tmp_path}/copy.db").stdout
        == f"schema {HEAD}, this version has {HEAD}\n"
    )
    again = run("db", "backup", f"{tmp_path}/copy.db", "--db", db)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
