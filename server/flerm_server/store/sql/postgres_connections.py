"""Connections to PostgreSQL, by psycopg 3.

Nothing here depends on a setting of a session, which a pooler may drop or share between clients:
the settings of a transaction travel with its BEGIN, in one message, and there are no prepared
statements.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import Params
from psycopg.pq import TransactionStatus
from typing_extensions import override

from flerm_core.errors import FlermError, Refused, Unreachable
from flerm_server.presence import Presence
from flerm_server.store.sql.compiled_statements import Rows, Statement
from flerm_server.store.sql.connections import ROOM_BYTES, Connections, TransactionKind
from flerm_server.store.sql.database_url import libpq_options, public_name

Result = TypeVar("Result")

# Together these are less than the ten seconds after which a server is to have noticed a failure.
CONNECT_SECONDS = 3  # for one host of the URL
BEGIN_SECONDS = 4.0  # a database that lives begins a transaction at once
ANSWER_SECONDS = 8.0  # for one statement; the database itself cancels it a second earlier
CANCEL_SECONDS = 0.2  # between two attempts to cancel a statement
# For a lock that a statement sent along with BEGIN waits for. Less than BEGIN_SECONDS, so that a
# lock that is held is told from a database that does not answer.
LOCK_SECONDS = 3
IDLE_SECONDS = 30  # how long a transaction of a server that went away keeps its locks

READ_ONLY = "25006"
MISSING_RIGHT = "42501"
MISSING_SCHEMA = "3F000"
# A database that is being restored, or has an older schema: a table or a column is missing.
INCOMPLETE = ("42P01", "42703")

_SETTINGS = (
    f"SET LOCAL statement_timeout = {round((ANSWER_SECONDS - 1) * 1000)}",
    f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}",
)
# The database may have limits of its own, which are made for what a server asks.
_UNHURRIED = (
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('statement_timeout', "
    "'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"
)
_LOCKS = f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000}"
# A database may be configured to acknowledge a commit before it is on disk. The store promises that
# what it acknowledged is durable. Stricter settings than `on` stay.
_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', true) "
    "WHERE current_setting('synchronous_commit') = 'off'"
)

# A sort that memory does not hold goes to the disk of the database's tables. Whoever may read may
# sort, while the size of the free disk is told to superusers alone.
_ROOM = (
    "SET LOCAL work_mem = 64; SET LOCAL temp_tablespaces = ''; "
    f"SELECT count(*) FROM (SELECT row::text || repeat('x', {ROOM_BYTES // 64}) COLLATE \"C\" AS "
    "text FROM generate_series(1, 64) AS row ORDER BY text OFFSET 0) AS sorted"
)


class PatientConnection(psycopg.Connection[Any]):
    """A connection that is closed when the database has not answered for `patience` seconds.

    The timeouts of PostgreSQL itself end what is slow. They do not end what is frozen, or what
    travels on a network that is gone.
    """

    number = 0
    patience: float | None = ANSWER_SECONDS

    @override
    def execute(
        self,
        query: Any,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = True,
    ) -> psycopg.Cursor[Any]:
        # Rows of FSLRs as text are twice as long, and the driver keeps all that a statement finds.
        return super().execute(query, params, prepare=prepare, binary=binary)

    @override
    def wait(
        self,
        gen: Generator[Any, Any, Result],
        interval: float = 0.1,
        timeout: float | None = None,
    ) -> Result:
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"no answer within {self.patience:g} s, so the connection was given up"
            ) from error


class PostgresConnections(Connections):
    """Connections to the database of a PostgreSQL URL."""

    def __init__(self, url: sa.URL) -> None:
        """`url` as `parse_url` gives it."""
        super().__init__()
        self._name = public_name(url)
        self._options = {
            "connect_timeout": str(CONNECT_SECONDS),
            # A host that went away without a word is noticed by these where nothing is asked of it.
            "keepalives_idle": "5",
            "keepalives_interval": "2",
            "keepalives_count": "3",
            "tcp_user_timeout": str(round(ANSWER_SECONDS * 1000)),
            "application_name": "flerm",
            **libpq_options(url),
            # The database, the role or the environment may name another for other programs.
            "client_encoding": "UTF8",
        }

    @override
    def _connect(self) -> PatientConnection:
        connection = PatientConnection.connect(
            autocommit=True,  # `begin` opens transactions; the driver must not
            prepare_threshold=None,
            **self._options,  # type: ignore[arg-type]
        )
        encoding = connection.info.parameter_status("server_encoding")
        if encoding not in (None, "UTF8"):
            connection.close()
            raise Refused(
                f"the database {self._name} has the encoding {encoding}, in which names would be "
                "damaged: make one by CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )
        return connection

    @override
    def begin(
        self,
        connection: PatientConnection,
        kind: TransactionKind,
        first: Sequence[Statement] = (),
    ) -> list[Rows]:
        # Named, because the database may have another default. Above READ COMMITTED a transaction
        # that waited for a lock would fail.
        level = "REPEATABLE READ" if kind.snapshot else "READ COMMITTED"
        statements = [f"BEGIN ISOLATION LEVEL {level}"]
        statements += [_UNHURRIED] if kind.unhurried else _SETTINGS
        if kind.writes:
            statements.append(_DURABLE)
        if first:
            statements.append(_LOCKS)
        cursor = psycopg.ClientCursor(connection)
        asked = _texts(cursor, first)
        connection.patience = BEGIN_SECONDS
        cursor.execute("; ".join([*statements, *asked]))
        connection.patience = None if kind.unhurried else ANSWER_SECONDS
        for _ in statements[1:]:
            cursor.nextset()
        return [cursor.fetchall() for _ in asked if cursor.nextset()]

    @override
    def commit(self, connection: PatientConnection, last: Sequence[Statement] = ()) -> None:
        if not last:
            connection.commit()
            return
        cursor = psycopg.ClientCursor(connection)
        cursor.execute("; ".join([*_texts(cursor, last), "COMMIT"]))

    @override
    def confirm(self, connection: PatientConnection) -> None:
        """A commit that PostgreSQL has answered is durable."""

    @override
    @contextmanager
    def attended(self, connection: PatientConnection, presence: Presence) -> Iterator[None]:
        ended = threading.Event()

        def cancel() -> None:
            threading.Thread(
                target=_cancel, args=(connection, ended), name="cancel", daemon=True
            ).start()

        with presence.calling(cancel):
            try:
                yield
            finally:
                ended.set()

    @override
    def require_room(self, connection: PatientConnection) -> None:
        connection.execute(_ROOM, binary=False)  # several statements

    @override
    def is_answer(self, error: BaseException) -> bool:
        answers = (psycopg.DataError, psycopg.ProgrammingError, psycopg.errors.LockNotAvailable)
        return isinstance(error, answers)

    @override
    def has_failed(self, connection: PatientConnection, error: Exception) -> bool:
        return connection.closed or getattr(error, "sqlstate", None) == READ_ONLY

    @override
    def explain(self, error: Exception) -> FlermError | None:
        state = getattr(error, "sqlstate", None)
        reason = str(error).strip().partition("\n")[0]
        if state == READ_ONLY:
            return Unreachable(f"the database {self._name} cannot be written now: {reason}")
        if state == MISSING_RIGHT:
            return Unreachable(
                f"the database {self._name} refuses: {reason}; the role of the URL needs to own "
                "the tables, or GRANT ALL ON ALL TABLES and GRANT ALL ON ALL SEQUENCES in their "
                "schema; for `flerm db upgrade` it needs to own them, and GRANT CREATE ON SCHEMA"
            )
        if state == MISSING_SCHEMA:
            return Unreachable(
                f"the database {self._name} has none of the schemas in the role's search_path: "
                f"{reason}; make it by CREATE SCHEMA, or set search_path"
            )
        if state in INCOMPLETE:
            return Unreachable(
                f"the database {self._name} lacks a part of this version's schema: {reason}; "
                "run `flerm db upgrade`, or finish the restore"
            )
        return None

    @override
    def close(self) -> None:
        """Nothing is held beside the connections."""


def _cancel(connection: PatientConnection, ended: threading.Event) -> None:
    """Cancels the statement of a connection that another thread uses, until that has noticed.

    Not once only: the database ignores what comes between two statements.
    """
    while not ended.is_set():
        with suppress(psycopg.Error):  # a database that does not answer ends the statement itself
            connection.cancel_safe(timeout=CONNECT_SECONDS)
        ended.wait(CANCEL_SECONDS)


def _texts(cursor: psycopg.ClientCursor[Any], statements: Sequence[Statement]) -> list[str]:
    """Statements with their arguments in the text: one message has several only in that form."""
    return [cursor.mogrify(sql, arguments) for sql, arguments in statements]
