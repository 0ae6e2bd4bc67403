"""What the settings of a database, which its operator made for other programs, do to a registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from typer.testing import CliRunner

from flerm_core.errors import Unreachable
from flerm_server.cli import app
from flerm_server.store.interface import Appended
from flerm_server.store.sql.database_url import parse_url
from flerm_server.store.sql.engine import open_engine, transaction
from flerm_server.store.sql.store import SqlStore, open_store
from tests.conftest import PostgresCluster
from tests.server.conftest import migrate
from tests.server.samples import batch, family, row, spec

JOBS, ROWS = 4, 20


def with_settings(postgres: PostgresCluster, **settings: str) -> str:
    """The URL of an empty database with settings of its own."""
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        for key, value in settings.items():
            connection.execute(f"ALTER DATABASE {name} SET {key} = {value}")
    return url


def with_role(url: str, role: str, options: str = "") -> str:
    """The URL of the same database for a role of its own, which may do nothing yet."""
    role = f"{role}_{url.rpartition('/')[2]}"
    execute(url, f"CREATE ROLE {role} LOGIN {options}")
    return url.replace("postgres@", f"{role}@")


def execute(url: str, statement: str) -> None:
    """As a superuser of the database of `url`."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def failures_of(count: int, job: Callable[[int], None]) -> list[BaseException]:
    """What was raised where so many threads do a job at once; a job gets the thread's number."""
    failures: list[BaseException] = []
    together = threading.Barrier(count)

    def work(number: int) -> None:
        together.wait()
        try:
            job(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return failures


@pytest.fixture
def two_stores(
    postgres: PostgresCluster, request: pytest.FixtureRequest
) -> Iterator[list[SqlStore]]:
    url = migrate(with_settings(postgres, default_transaction_isolation=request.param))
    with closing(open_store(url)) as one, closing(open_store(url)) as other:
        yield [one, other]


@pytest.mark.parametrize(
    "two_stores", ["'repeatable read'", "serializable"], indirect=True, ids=["repeatable", "serial"]
)
def test_a_stricter_isolation_refuses_no_rows_of_two_servers(two_stores: list[SqlStore]):
    sent = spec(family())
    two_stores[0].start(sent)

    def job(number: int) -> None:
        for step in range(1, ROWS + 1):
            batches = [batch(sent.id, row(number * ROWS + step))]
            for answer in two_stores[number % 2].append_many(batches):
                assert answer == Appended(1, 0)

    assert failures_of(JOBS, job) == []
    assert two_stores[0].recording(sent.id).rows == JOBS * ROWS


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_texts_are_whole_whatever_the_encoding_of_other_clients(
    postgres: PostgresCluster, encoding: str
):
    url = migrate(with_settings(postgres, client_encoding=encoding))
    with closing(open_store(url)) as store:
        name = family()
        store.register_family(name, description="ÿ → 変")
        assert store.family(name).description == "ÿ → 変"


def test_the_commands_of_an_operator_take_the_time_they_need(postgres: PostgresCluster):
    limits = {"statement_timeout": "300", "lock_timeout": "300"}
    limits |= {"idle_in_transaction_session_timeout": "300"}
    engine = open_engine(parse_url(with_settings(postgres, **limits)))
    try:
        with transaction(engine, unhurried=True) as connection:
            for name in limits:
                assert connection.exec_driver_sql(f"SHOW {name}").scalar_one() == "0"
            connection.exec_driver_sql("SELECT pg_sleep(0.5)")
    finally:
        engine.dispose()


def test_what_is_in_a_schema_beside_the_search_path_is_named(postgres: PostgresCluster):
    url = with_settings(postgres, search_path="registry")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA registry")
    migrate(url)
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} RESET search_path")
    done = CliRunner().invoke(app, ["db", "check", "--db", url])
    assert done.exit_code == 5
    assert "the schema 'registry'" in done.stderr
    assert "search_path" in done.stderr
    there = CliRunner().invoke(
        app, ["db", "check", "--db", f"{url}?options=-csearch_path%3Dregistry"]
    )
    assert there.exit_code == 0, there.stderr


def test_a_search_path_without_a_schema_is_named(postgres: PostgresCluster):
    url = with_settings(postgres, search_path="missing")
    done = CliRunner().invoke(app, ["db", "upgrade", "--db", url])
    assert done.exit_code == 4
    assert "no schema has been selected" in done.stderr
    assert "CREATE SCHEMA" in done.stderr
    assert "flerm db upgrade" not in done.stderr


def test_a_role_needs_the_sequences_too(postgres: PostgresCluster):
    url = migrate(postgres.new_database())
    theirs = with_role(url, "writer")
    role = parse_url(theirs).username
    execute(url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    made = ["token", "create", "root", "--scope", "admin", "--db", theirs]
    done = CliRunner().invoke(app, made)
    assert (done.exit_code, "GRANT ALL ON ALL SEQUENCES" in done.stderr) == (4, True)
    execute(url, f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    assert CliRunner().invoke(app, made).exit_code == 0


def test_a_role_that_may_not_create_is_told_so(postgres: PostgresCluster):
    url = postgres.new_database()
    poor = with_role(url, "poor")
    execute(url, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    done = CliRunner().invoke(app, ["db", "upgrade", "--db", poor])
    assert (done.exit_code, "GRANT CREATE ON SCHEMA" in done.stderr) == (4, True)


def test_calls_wait_where_the_role_has_fewer_connections_than_they_are(postgres: PostgresCluster):
    url = migrate(postgres.new_database())
    few = with_role(url, "few", "CONNECTION LIMIT 2")
    for kind in ("TABLES", "SEQUENCES"):
        execute(url, f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {parse_url(few).username}")
    with closing(open_store(few)) as store:

        def job(_: int) -> None:
            for _ in range(ROWS):
                store.family_names()
                store.register_family(family())

        assert failures_of(JOBS * 4, job) == []


def test_a_call_that_gets_no_connection_at_all_is_told_so(postgres: PostgresCluster):
    url = migrate(postgres.new_database())
    none = with_role(url, "none", "CONNECTION LIMIT 0")
    with pytest.raises(Unreachable, match="too many connections for role"):
        open_store(none)
