"""What an operator can get wrong about a database is answered by one sentence, without secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import psycopg
import pytest
from typer.testing import CliRunner

from flerm_core.errors import NotFound, Unreachable
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import ParameterList
from flerm_server.cli import app
from flerm_server.logs import public_sentence
from flerm_server.store.sql import postgres_connections
from flerm_server.store.sql.database_url import libpq_options, parse_url
from flerm_server.store.sql.engine import open_engine, transaction
from flerm_server.store.sql.store import open_store
from tests.conftest import PostgresCluster, StartRegistry, free_port
from tests.server.conftest import migrate
from tests.server.samples import batch, row, spec


def answer(*arguments: str) -> tuple[int, str]:
    """The exit code and what `flerm db` says. Fails on anything but a sentence."""
    done = CliRunner().invoke(app, ["db", *arguments])
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    said = done.stdout + done.stderr
    assert len(said.splitlines()) == 1, said
    return done.exit_code, said


def test_a_url_may_name_several_hosts(postgres: PostgresCluster):
    url = postgres.new_database()
    name, port = url.rpartition("/")[2], postgres.port
    hosts = f"127.0.0.1:{free_port()},[::1]:{free_port()},127.0.0.1:{port}"
    several = f"postgresql://postgres@{hosts}/{name}?connect_timeout=2"
    assert answer("upgrade", "--db", several)[0] == 0
    assert answer("check", "--db", several)[0] == 0
    options = libpq_options(parse_url(several))
    assert options["target_session_attrs"] == "read-write"
    assert options["connect_timeout"] == "2"
    read_only = parse_url("postgresql://u@a,b/d?target_session_attrs=any")
    assert libpq_options(read_only) == {
        "user": "u", "dbname": "d", "host": "a,b", "port": ",", "target_session_attrs": "any",
    }  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:port/d",
        "postgresql://u:hunter2@h1:1,h2:x/d",
        "postgresql://u@h/d?passwort=hunter2",
        "mysql://u:hunter2@h/d",
        "hunter2",
    ],
)
def test_a_url_that_is_none_is_not_repeated_with_its_password(url: str):
    code, said = answer("check", "--db", url)
    assert code == 2
    assert ("hunter2" in said) == (url == "hunter2")


def test_another_encoding_than_utf8_is_refused(postgres: PostgresCluster):
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name}_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
        )
    code, said = answer("upgrade", "--db", f"{url}_ascii")
    assert (code, "encoding SQL_ASCII" in said, "ENCODING 'UTF8'" in said) == (5, True, True)


def test_the_database_cancels_a_slow_statement_but_not_that_of_a_command(
    postgres: PostgresCluster, monkeypatch: pytest.MonkeyPatch
):
    engine = open_engine(parse_url(postgres.new_database()))
    try:
        for unhurried, longest in ((False, "7s"), (True, "0")):
            with transaction(engine, unhurried=unhurried) as connection:
                found = connection.exec_driver_sql("SHOW statement_timeout").scalar_one()
            assert found == longest
        monkeypatch.setattr(
            postgres_connections, "_SETTINGS", ("SET LOCAL statement_timeout = 50",)
        )
        with (
            pytest.raises(Unreachable, match="statement timeout"),
            transaction(engine) as connection,
        ):
            connection.exec_driver_sql("SELECT pg_sleep(60)")
        with transaction(engine, unhurried=True) as connection:
            connection.exec_driver_sql("SELECT pg_sleep(0.1)")
    finally:
        engine.dispose()


def test_a_role_without_rights_is_told_which(postgres: PostgresCluster):
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE guest_{name} LOGIN")
    code, said = answer("check", "--db", url.replace("postgres@", f"guest_{name}@"))
    assert (code, "permission denied" in said, "GRANT ALL" in said) == (4, True, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without rights")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path):
    open_store(f"sqlite:///{tmp_path}/runs.db").close()
    somebody = 54321
    for each in (tmp_path, *tmp_path.parents):
        if each.name.startswith(("pytest", "popen", tmp_path.name)):  # pytest's own folders
            each.chmod(0o755)

    def as_somebody(*arguments: str) -> str:
        script = (
            "import os, zoneinfo; from flerm_server.cli import app; "
            "import flerm_server.store.sql.store, sqlalchemy.dialects.sqlite; "
            f"os.setgid({somebody}); os.setuid({somebody}); app()"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "db", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 4
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "Permission denied" in as_somebody("upgrade", "--db", f"sqlite:///{tmp_path}/new.db")
    assert "runs.db" in as_somebody("check", "--db", f"sqlite:///{tmp_path}/runs.db")


def test_readiness_never_tells_the_password(
    start_registry: StartRegistry, postgres: PostgresCluster
):
    url = migrate(postgres.new_database())
    name = url.rpartition("/")[2]
    registry = start_registry(
        db=url.replace("postgres@", "postgres:hunter1@") + "?password=hunter2"
    )
    admin = url.rpartition("/")[0] + "/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
    found = httpx.get(f"{registry.http}/readyz", timeout=20)
    assert found.status_code == 503
    assert str(postgres.port) not in found.text and name not in found.text  # the log has them
    assert "hunter" not in found.text
    assert "postgres@" not in found.text


def test_pruning_gives_the_room_back(tmp_path: Path):
    file = tmp_path / "runs.db"
    db = f"sqlite:///{file}"
    store = open_store(db)
    for at in range(8):
        names = tuple(f"model {at} layers.{each}.weight" for each in range(2000))
        lists = ParameterList(names, ((1,),) * 2000, ("other",) * 2000)
        sent = spec("pruned", parameters=lists)
        store.start(sent)
        store.append_many([batch(sent.id, *(row(step, *[1.0] * 2000) for step in range(1, 20)))])
    kept = spec("pruned")
    store.start(kept)
    store.close()
    before = file.stat().st_size
    assert before > 2_000_000
    prune = ["db", "prune", "--older-than", "0", "--db", db]
    done = CliRunner().invoke(app, prune)
    assert done.stdout == "deleted 9 recordings with 152 rows\n"
    assert "deleted 9 unused parameter lists" in done.stderr
    assert file.stat().st_size < 300_000
    store = open_store(db)
    assert not store.recordings(RecordingFilter()).items
    assert store.start(kept).created
    store.close()


def test_pruning_on_postgresql_leaves_lists_that_are_used(postgres: PostgresCluster):
    url = migrate(postgres.new_database())
    store = open_store(url)
    lists = ParameterList(("a",), ((1,),), ("other",))
    used, unused = spec("pruned"), spec("pruned", parameters=lists)
    for each in (used, unused):
        store.start(each)
    store.delete(unused.id)
    done = CliRunner().invoke(app, ["db", "prune", "--older-than", "1", "--db", url])
    assert done.stdout == "deleted 0 recordings with 0 rows\n"
    assert "deleted 1 unused parameter lists" in done.stderr
    assert store.recording(used.id).spec == used
    assert store.start(unused).created
    store.close()


def told(url: str, spoil: Callable[[], object]) -> str:
    """What a caller is told of a database that was in use, and then spoilt."""
    store = open_store(url)
    try:
        spoil()
        with pytest.raises(Unreachable) as caught:
            store.families()
    finally:
        store.close()
    return public_sentence(caught.value)


def test_strangers_are_not_told_of_a_place_with_blanks(tmp_path: Path):
    folder = tmp_path / "my disk" / "of runs"
    folder.mkdir(parents=True)
    file = folder / "my runs.db"
    sentence = told(f"sqlite:///{file}", lambda: file.rename(folder / "elsewhere"))
    assert "the database file is not there" in sentence
    assert not [each for each in ("disk", "my", "runs") if each in sentence]


def test_strangers_are_not_told_of_a_socket_and_a_name_with_blanks(postgres: PostgresCluster):
    with psycopg.connect(postgres.new_database(), autocommit=True) as connection:
        connection.execute('CREATE DATABASE "my runs"')
        name = "?".join(("my%20runs", f"host={postgres.folder}&port={postgres.port}"))
        url = migrate(f"postgresql://postgres@/{name}")

        def close() -> None:
            connection.execute('DROP DATABASE "my runs" WITH (FORCE)')

        sentence = told(url, close)
    assert "does not exist" in sentence
    assert not [
        each for each in ("my", "runs", str(postgres.folder), "PGSQL") if each in sentence
    ], sentence


def test_of_an_unknown_family_the_registrys_only_one_is_named(tmp_path: Path):
    url = migrate(f"sqlite:///{tmp_path}/registry.db")
    with closing(open_store(url)) as store:
        store.register_family("demo")
        with pytest.raises(NotFound, match=r"; there is one, demo$"):
            store.family("nothing")
        store.register_family("team/demo")
        with pytest.raises(NotFound, match=r"; there are 2, for example demo, team/demo$"):
            store.family("nothing")
