"""The floors of the registry benchmarks: bare SQLite, and a gRPC method that does nothing.

Run as a program this file is the bare server: it prints its port and ends when its standard input
closes.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

ANSWER = b"\x08\x01"  # an AppendResponse with committed = 1
TABLE = """CREATE TABLE measurements (
attempt_key INTEGER NOT NULL, step BIGINT NOT NULL, fslr BLOB NOT NULL, loss DOUBLE,
learning_rate DOUBLE, tokens BIGINT, measured_at BIGINT, committed_at BIGINT NOT NULL, extra BLOB,
PRIMARY KEY (attempt_key, step))"""
INSERT = "INSERT INTO measurements VALUES (1, ?, ?, 1.0, 1e-3, ?, ?, ?, NULL)"


def bare_sqlite(folder: Path, payload: bytes, commits: int, rows: int) -> list[float]:
    """Seconds of each of `commits` transactions of `rows` rows with a blob of `payload`, as
    durable as the registry's.
    """
    file = folder / f"bare-{time.monotonic_ns()}.db"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(TABLE)
    seconds = []
    for commit in range(commits):
        started = time.perf_counter()
        first = 1 + commit * rows
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            INSERT, [(step, payload, step, step, step) for step in range(first, first + rows)]
        )
        connection.execute("COMMIT")
        seconds.append(time.perf_counter() - started)
    connection.close()
    return seconds


def bare_postgres(url: str, payload: bytes, commits: int, rows: int) -> list[float]:
    """As `bare_sqlite`, on PostgreSQL by psycopg."""
    import psycopg

    table = TABLE.replace("BLOB", "BYTEA").replace("DOUBLE", "DOUBLE PRECISION")
    seconds = []
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS bare")
        cursor.execute(table.replace("TABLE measurements", "TABLE bare"))
        insert = INSERT.replace("INTO measurements", "INTO bare").replace("?", "%s")
        for commit in range(commits):
            started = time.perf_counter()
            first = 1 + commit * rows
            cursor.execute("BEGIN")
            cursor.executemany(
                insert, [(step, payload, step, step, step) for step in range(first, first + rows)]
            )
            cursor.execute("COMMIT")
            seconds.append(time.perf_counter() - started)
        cursor.execute("DROP TABLE bare")
    return seconds


class BareGrpc:
    """Calls of methods that take and return bytes. Neither side parses a message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._unary = channel.unary_unary("/bare/Unary")
        self._down = channel.unary_stream("/bare/Down")

    def unary(self, messages: Sequence[bytes]) -> list[float]:
        """Seconds of each call, one after the other."""
        seconds = []
        for message in messages:
            started = time.perf_counter()
            self._unary(message, timeout=60)
            seconds.append(time.perf_counter() - started)
        return seconds

    def down(self, messages: int, size: int) -> float:
        """Seconds to receive `messages` of `size` bytes."""
        started = time.perf_counter()
        received = sum(len(each) for each in self._down(f"{messages} {size}".encode(), timeout=600))
        assert received == messages * size
        return time.perf_counter() - started


@contextmanager
def bare_grpc() -> Iterator[BareGrpc]:
    """Starts a bare server in a process of its own; yields a client."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    port = int(process.stdout.readline())
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield BareGrpc(channel)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _unary(_: bytes, __: grpc.ServicerContext) -> bytes:
    return ANSWER


def _down(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
    messages, size = map(int, request.split())
    message = os.urandom(size)
    for _number in range(messages):
        yield message


def main() -> None:
    """Serves until standard input closes."""
    server = grpc.server(ThreadPoolExecutor(256))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Down": grpc.unary_stream_rpc_method_handler(_down),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
