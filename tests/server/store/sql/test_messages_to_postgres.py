"""How many messages to PostgreSQL an append takes, and what a lock does to the first of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest

from flerm_core.errors import Unreachable
from flerm_server.store.interface import Appended
from flerm_server.store.sql import postgres_connections
from flerm_server.store.sql.store import SqlStore, open_store
from tests.conftest import PostgresCluster
from tests.server.conftest import migrate
from tests.server.samples import batch, family, row, rows, spec

READY = b"Z"  # the message with which PostgreSQL ends each answer


class CountingRelay:
    """Passes one client's connections on to a port, and counts the server's answers."""

    def __init__(self, port: int) -> None:
        self.answers = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for serve in (self._pass_on, self._count):
                    threading.Thread(target=serve, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _count(self, client: socket.socket, server: socket.socket) -> None:
        stream = server.makefile("rb")
        with suppress(OSError):
            while head := stream.read(5):  # a letter and the length, itself included
                body = stream.read(int.from_bytes(head[1:], "big") - 4)
                self.answers += head[:1] == READY
                client.sendall(head + body)


@pytest.fixture
def url(postgres: PostgresCluster) -> str:
    return migrate(postgres.new_database())


@pytest.fixture
def relay(url: str) -> Iterator[CountingRelay]:
    port = psycopg.conninfo.conninfo_to_dict(url)["port"]
    with closing(CountingRelay(int(port or 0))) as relay:
        yield relay


@pytest.fixture
def store(url: str, relay: CountingRelay) -> Iterator[SqlStore]:
    there = url.replace(f":{psycopg.conninfo.conninfo_to_dict(url)['port']}/", f":{relay.port}/")
    with closing(open_store(f"{there}?sslmode=disable&gssencmode=disable")) as store:
        yield store


def test_an_append_takes_two_messages_and_one_more_for_many_rows(
    store: SqlStore, relay: CountingRelay
):
    sent = spec(family())
    store.start(sent)
    taken = []
    for steps in ([1], [2], range(3, 53), range(40, 60)):
        before = relay.answers
        assert isinstance(store.append_many([batch(sent.id, *rows(*steps))])[0], Appended)
        taken.append(relay.answers - before)
    # The last one has rows that are stored already, which are looked up.
    assert taken == [2, 2, 3, 4]
    other = spec(family())
    store.start(other)
    before = relay.answers
    store.append_many([batch(each.id, *rows(100, 101)) for each in (sent, other)])
    assert relay.answers - before == 3
    assert [store.recording(each.id).rows for each in (sent, other)] == [61, 2]


def test_rows_come_back_as_they_were_sent_one_at_a_time_or_many_at_once(store: SqlStore):
    sent = spec(family())
    store.start(sent)
    bare = row(1)
    full = row(2, loss=-0.1, learning_rate=1e-300, tokens=2**53 - 1, scalars={"sharpness": 0.1})
    quoted = row(3, scalars={"it's \\x00 %s": 1.5})
    for one in (bare, full, quoted):
        assert store.append_many([batch(sent.id, one)]) == [Appended(1, 0)]
    many = [row(step + 3, loss=one.loss, tokens=one.tokens, scalars=one.scalars)
            for step, one in enumerate((bare, full, quoted), 1)]  # fmt: skip
    store.append_many([batch(sent.id, *many)])
    # Sent again: only equal content is a duplicate.
    again = store.append_many([batch(sent.id, bare, full, quoted, *many)])
    assert again == [Appended(6, 6)]


def test_a_lock_that_is_held_refuses_an_append_and_drops_no_other_connection(
    store: SqlStore, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgres_connections, "_LOCKS", "SET LOCAL lock_timeout = 50")
    sent = spec(family())
    store.start(sent)
    with psycopg.connect(url) as holder:
        holder.execute("SELECT 1 FROM recordings WHERE id = %s FOR UPDATE", [sent.id])
        with pytest.raises(Unreachable, match="lock timeout"):
            store.append_many([batch(sent.id, row(1))])
        trusted = store.recording(sent.id)
    assert trusted.rows == 0
    assert store.append_many([batch(sent.id, row(1))]) == [Appended(1, 0)]
