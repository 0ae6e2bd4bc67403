"""Transactions that change the same recordings wait for each other, and never both at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from flerm_core.records.recording import Ending, RecordingSpec
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.recording_part import RecordingPart
from flerm_server.store.sql.store import SqlStore, open_store
from tests.conftest import PostgresCluster
from tests.server.conftest import migrate
from tests.server.samples import family, spec
from tests.support.waiting import until

Change = Callable[[SqlStore, RecordingSpec], Any]
FIRST_ID = "00000000-0000-4000-8000-000000000000"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def finish(store: SqlStore, known: RecordingSpec) -> Any:
    return store.finish(known.id, 0, Ending(status="completed")).status


def tag(store: SqlStore, known: RecordingSpec) -> Any:
    return store.tag(known.id, {"checked": "yes"}).spec.tags


def delete(store: SqlStore, known: RecordingSpec) -> Any:
    return store.delete(known.id)


def start(store: SqlStore, known: RecordingSpec) -> Any:
    return store.start(known).created


def import_with_a_new_one(store: SqlStore, known: RecordingSpec) -> Any:
    """The new recording changes the family's row before the known one is looked at."""
    new = spec(known.family, id=FIRST_ID)
    parts = [RecordingPart(recording_id=each.id, spec=each) for each in (new, known)]
    return store.import_parts(parts).created


@pytest.fixture(scope="module")
def stores(postgres: PostgresCluster) -> Iterator[tuple[SqlStore, SqlStore]]:
    """Those of two servers on one database."""
    url = migrate(postgres.new_database())
    both = open_store(url), open_store(url)
    yield both
    for each in both:
        each.close()


@pytest.mark.parametrize(
    ("first", "second", "answers"),
    [
        (finish, import_with_a_new_one, ("completed", 1)),
        (tag, import_with_a_new_one, ({"checked": "yes"}, 1)),
        (delete, start, (0, True)),
    ],
)
def test_two_servers_change_one_recording_one_after_the_other(
    stores: tuple[SqlStore, SqlStore], first: Change, second: Change, answers: tuple[Any, Any]
):
    """Both wait for the recording, so that the first goes on while the second holds what it has."""
    known = replace(spec(family()), id="ffffffff-ffff-4fff-8fff-ffffffffffff")
    stores[0].start(known)
    url = stores[0].engine.url.set(drivername="postgresql").render_as_string()
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
        holder.execute("SELECT key FROM recordings WHERE id = %s FOR UPDATE", [known.id])
        with ThreadPoolExecutor(2) as threads:
            asked: list[Future[Any]] = []
            for store, change in zip(stores, (first, second), strict=True):
                asked.append(threads.submit(change, store, known))
                until(lambda: watcher.execute(WAITING).fetchone() == (len(asked),), "waits")
            holder.rollback()
            assert tuple(each.result(30) for each in asked) == answers
    for each in (FIRST_ID, known.id):
        stores[0].delete(each)


def test_logins_of_one_token_on_two_servers_do_not_wait_for_each_other_twice(
    stores: tuple[SqlStore, SqlStore],
):
    tokens = [SqlTokenStore(store.engine) for store in stores]
    token, _ = tokens[0].create("browser", "read")
    begin = threading.Barrier(8)

    def log_in(at: int) -> None:
        begin.wait()
        for _ in range(15):
            tokens[at % 2].open_session(token.id)

    with ThreadPoolExecutor(8) as threads:
        for each in [threads.submit(log_in, at) for at in range(8)]:
            each.result(60)
    with stores[0].engine.connect() as connection:
        (count,) = connection.exec_driver_sql("SELECT count(*) FROM sessions").one()
    assert count == 100
