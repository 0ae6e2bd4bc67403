"""Connections to a SQLite file, for as long as the file lies where the URL says."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

from typing_extensions import override

from flerm_core.errors import FlermError, Unreachable
from flerm_server.presence import Presence
from flerm_server.store.sql.compiled_statements import Rows, Statement
from flerm_server.store.sql.connections import ROOM_BYTES, Connections, TransactionKind
from flerm_server.store.sql.database_url import real_file
from flerm_server.store.sql.sqlite_ownership import (
    FileIds,
    SqliteOwnership,
    file_id,
    file_ids,
)

BUSY_SECONDS = 8  # how long a writer waits for another writer
# After how many steps of its virtual machine a statement looks whether its caller has left: about
# 20 ms. A look takes the interpreter's lock, for which busy threads may let it wait.
LOOK_STEPS = 500_000


class SqliteConnection(sqlite3.Connection):
    """A connection that knows which files it has open: the database and its log."""

    number = 0
    files: FileIds | None = None


class SqliteConnections(Connections):
    """Connections to one file, which is made by `create_file` only.

    Raises `Unreachable` where the file was deleted or replaced under the connections: what is
    written then would be on no disk that anybody reads again.
    """

    def __init__(self, named: Path) -> None:
        """Opens nothing yet.

        named: the file, or a symbolic link to it, which may be made to lead elsewhere.
        """
        super().__init__()
        self._named, self._file = named, real_file(named)
        self._ownership = SqliteOwnership(self._file)
        self._connecting = threading.Lock()

    @override
    def _connect(self) -> SqliteConnection:
        with self._connecting:
            file = real_file(self._named)
            if file != self._file:
                self._ownership.release()
                self._file, self._ownership = file, SqliteOwnership(file)
            self._ownership.claim()
        connection = connect(self._file)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise Unreachable(
                    f"SQLite cannot use its write-ahead log here (journal mode {mode!r}): "
                    "keep the file on a local disk"
                )
            for pragma in ("synchronous=FULL", "foreign_keys=ON", "schema_version"):
                connection.execute(f"PRAGMA {pragma}")  # the last one opens the log
            connection.files = file_ids(self._file)
            if connection.files.database != self._ownership.claimed:
                raise self._gone()
        except BaseException:
            connection.close()
            raise
        return connection

    @override
    def begin(
        self,
        connection: SqliteConnection,
        kind: TransactionKind,
        first: Sequence[Statement] = (),
    ) -> list[Rows]:
        found = file_ids(self._file)
        if self._named is not self._file and file_id(self._named) != found.database:
            raise self._gone()
        if found != connection.files:
            if found.database == connection.files.database and found.log is None:  # type: ignore[union-attr]
                # The log alone was deleted. This connection still has it open, with what was
                # acknowledged.
                connection.execute("PRAGMA wal_checkpoint(FULL)")
            raise self._gone()
        # A transaction that reads before it writes takes the write lock with its first statement.
        # Otherwise its first write fails where another transaction has written since it read.
        connection.execute("BEGIN IMMEDIATE" if kind.writes else "BEGIN")
        return [connection.execute(*each).fetchall() for each in first]

    @override
    def commit(self, connection: SqliteConnection, last: Sequence[Statement] = ()) -> None:
        for sql, alike in groupby(last, key=itemgetter(0)):
            connection.executemany(sql, [arguments for _, arguments in alike])
        connection.commit()

    @override
    def confirm(self, connection: SqliteConnection) -> None:
        if file_ids(self._file) != connection.files:
            raise self._gone()

    @override
    @contextmanager
    def attended(self, connection: SqliteConnection, presence: Presence) -> Iterator[None]:
        presence.require()
        connection.set_progress_handler(lambda: presence.gone, LOOK_STEPS)
        try:
            yield
        finally:
            connection.set_progress_handler(None, 0)

    @override
    def require_room(self, connection: Any) -> None:
        # What a transaction writes may fit into parts of the log that are free again. So room is
        # asked for behind the end of the longer file, where quotas and limits of a file's size
        # count too.
        sizes = [
            path.stat().st_size for path in (self._file, Path(f"{self._file}-wal")) if path.exists()
        ]
        try:
            with TemporaryFile(dir=self._file.absolute().parent) as trial:
                os.posix_fallocate(trial.fileno(), max(sizes, default=0), ROOM_BYTES)
        except OSError as error:
            raise Unreachable(
                f"the database {self._file} has no room for {ROOM_BYTES >> 10} KiB more: "
                f"{error.strerror}"
            ) from error

    @override
    def is_answer(self, error: BaseException) -> bool:
        # The write lock was not free: another connection would not get it either.
        return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")

    @override
    def has_failed(self, connection: Any, error: Exception) -> bool:
        return False  # `begin` looks at the file itself

    @override
    def explain(self, error: Exception) -> FlermError | None:
        return None

    @override
    def close(self) -> None:
        self._ownership.release()

    def _gone(self) -> Unreachable:
        return Unreachable(
            f"the file {self._file} was deleted or replaced while it was in use, "
            "with its log (-wal, -shm) or alone"
        )


def connect(file: Path, *, mode: str = "rw") -> SqliteConnection:
    """A connection to an existing file, in which the driver opens no transactions of its own."""
    return sqlite3.connect(
        f"file:{quote(str(file))}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        check_same_thread=False,
        isolation_level=None,
        factory=SqliteConnection,
    )


def create_file(file: Path) -> None:
    """Makes an empty file, which only its owner may read, where there is none.

    SQLite gives its log the same mode. Raises `Unreachable` where the folder does not allow that.
    """
    try:
        with suppress(FileExistsError):
            file.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise Unreachable(
            f"db sqlite:///{file}: unable to open database file: {error.strerror}; "
            f"name a folder that exists and may be written, instead of {file.absolute().parent}"
        ) from error
