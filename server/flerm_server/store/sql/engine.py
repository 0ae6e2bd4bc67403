"""Engines and transactions, the same for SQLite and PostgreSQL.

A committed transaction is durable on both. Each transaction begins on a connection that the
database still serves: where a connection is stale, the pool makes another one. What fails is raised
as an error of ours, in one sentence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import PoolProxiedConnection

from flerm_core.errors import FlermError, InvalidInput, Refused, Unreachable
from flerm_server.presence import ALWAYS, current_presence
from flerm_server.store.sql.compiled_statements import Driver, Rows, Statement
from flerm_server.store.sql.connections import POOL_SECONDS, Connections, TransactionKind
from flerm_server.store.sql.database_url import database_file, places, public_name
from flerm_server.store.sql.sqlite_connections import SqliteConnections

# Types of file systems that several hosts share.
NETWORK_FILE_SYSTEMS = frozenset((
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "ceph-fuse",
    "glusterfs", "lustre", "gpfs", "beegfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "sshfs", "s3fs",
    "gcsfuse", "rclone", "davfs", "davfs2", "juicefs",
))  # fmt: skip
EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)

# Not now(), which is the time when the transaction began.
POSTGRES_CLOCK = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")


def open_engine(url: sa.URL) -> sa.Engine:
    """An engine whose committed transactions are durable. It connects at its first use.

    url: of `parse_url`.

    On SQLite, write transactions run one after the other.

    Raises `Refused` for a SQLite file on a network file system, and for what is no plain file.
    """
    connections: Connections
    if url.get_backend_name() == "postgresql":
        from flerm_server.store.sql.postgres_connections import PostgresConnections

        connections, pool_size, max_overflow, recycle = PostgresConnections(url), 8, 24, 1800
    else:
        file = database_file(url)
        if file.exists() and not file.is_file():
            raise Refused(f"db {file}: it is no plain file; name one, or one that is not there yet")
        refuse_network_file_system(file)
        connections, pool_size, max_overflow, recycle = (
            SqliteConnections(Path(url.database or "")), 8, 56, -1
        )  # fmt: skip
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_recycle=recycle,
        pool_timeout=POOL_SECONDS,
        hide_parameters=True,  # errors name the statement, and not what was to be stored
        execution_options={"connections": connections},
    )
    sa.event.listen(engine, "do_connect", lambda *_: connections.open())
    sa.event.listen(engine, "engine_disposed", lambda _: connections.close())
    return engine


def connections_of(engine: sa.Engine) -> Connections:
    """What makes the connections of an engine of `open_engine`."""
    return cast("Connections", engine.get_execution_options()["connections"])


def refuse_network_file_system(file: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raises `Refused` when `file` lies on a network file system.

    SQLite's write-ahead log is in memory that only the processes of one host share. Two hosts that
    use one file destroy it, and a process is killed by SIGBUS when the connection to the file
    system breaks.

    mounts: the kernel's list of file systems; where it does not exist, nothing is checked.
    """
    if not mounts.exists():
        return
    folder = file.absolute().parent.resolve()
    found = ("", "")
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        # The list has blanks as \\040.
        point = point.encode("latin-1", "backslashreplace").decode("unicode_escape")
        if folder.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    point, kind = found
    if kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS:
        raise Refused(
            f"db {file}: it lies on a network file system ({kind} at {point}), "
            "where SQLite's log would lose data; keep the file on a local disk, or use PostgreSQL"
        )


@contextmanager
def transaction(
    engine: sa.Engine, *, writes: bool = False, snapshot: bool = False, unhurried: bool = False
) -> Iterator[sa.Connection]:
    """A transaction; for its options see `TransactionKind`.

    Raises errors of the database as errors of ours: see `_our_errors`.
    """
    with _begun(engine, TransactionKind(writes, snapshot, unhurried)) as (pooled, _):
        connection = sa.Connection(engine, connection=pooled)
        with connection.begin():
            yield connection


@contextmanager
def driver_transaction(
    engine: sa.Engine, *, writes: bool = False, first: Sequence[Statement] = ()
) -> Iterator[Driver]:
    """A transaction on the driver's own connection.

    It takes 100 µs less than a transaction of SQLAlchemy.

    writes: as in `transaction`.
    first: statements that are sent in one message with BEGIN; `Driver.answers` has their rows.
    """
    with _begun(engine, TransactionKind(writes), first) as (_, driver):
        yield driver


@contextmanager
def _begun(
    engine: sa.Engine, kind: TransactionKind, first: Sequence[Statement] = ()
) -> Iterator[tuple[PoolProxiedConnection, Driver]]:
    """A connection of the pool in a transaction, which is committed when the block ends.

    A transaction that reads ends when its caller leaves, and raises `CallerGone`. One that writes
    goes on: it may be for other callers too, and whether it was committed would not be known.
    """
    connections = connections_of(engine)
    presence = ALWAYS if kind.writes else current_presence()
    presence.require()
    with _our_errors(engine):
        pooled, answers = _checked_out(engine, kind, first)
        connection: Any = pooled.driver_connection
        driver = Driver(connection, engine.dialect, answers)
        try:
            try:
                with (
                    nullcontext()
                    if presence is ALWAYS
                    else connections.attended(connection, presence)
                ):
                    yield pooled, driver
                    connections.commit(connection, driver.last)
            finally:
                # Also where the statement was answered before it was cancelled: the next one of
                # this connection may then be.
                presence.require()
            if kind.writes:
                connections.confirm(connection)
        except BaseException as error:
            # After an error of ours the connection still works, and the pool rolls it back. After
            # any other error the connection may be broken.
            if not isinstance(error, FlermError) or isinstance(error, Unreachable):
                _drop(pooled, connections, connection, error)
            raise
        finally:
            _give_back(pooled, connections)


def execute_alone(engine: sa.Engine, statements: Sequence[str]) -> None:
    """Executes statements that may not stand in a transaction, however long they take."""
    connections = connections_of(engine)
    with _our_errors(engine):
        connection = connections.open()
        try:
            # This leaves a connection that may be used, and that waits as long as needed.
            connections.begin(connection, TransactionKind(unhurried=True))
            connection.rollback()
            for statement in statements:
                connection.execute(statement)
        finally:
            connection.close()


def _checked_out(
    engine: sa.Engine, kind: TransactionKind, first: Sequence[Statement]
) -> tuple[PoolProxiedConnection, list[Rows]]:
    """A connection of the pool that has begun a transaction, and what its statements found.

    Connections that are stale are dropped. Where the database gives no further connection, this
    waits for one of this process. Raises what a new connection raises.
    """
    connections = connections_of(engine)
    while True:
        newest = connections.newest
        pooled = connections.lending.take(
            engine.raw_connection, engine.dialect.loaded_dbapi.OperationalError, POOL_SECONDS
        )
        connection: Any = pooled.driver_connection
        if connections.trusts(connection):
            try:
                return pooled, connections.begin(connection, kind, first)
            except BaseException as error:
                _drop(pooled, connections, connection, error)
                stale = connection.number <= newest and not connections.is_answer(error)
                if not (stale and isinstance(error, Exception)):
                    _give_back(pooled, connections)
                    raise
        else:
            pooled.invalidate()
        _give_back(pooled, connections)


def _give_back(pooled: PoolProxiedConnection, connections: Connections) -> None:
    pooled.close()
    connections.lending.give_back()


def _drop(
    pooled: PoolProxiedConnection, connections: Connections, connection: Any, error: BaseException
) -> None:
    """Closes a connection after an error, and all that are as old where the database failed."""
    cause = getattr(error, "orig", None) or error.__cause__ or error
    if isinstance(cause, Exception) and connections.has_failed(connection, cause):
        connections.distrust(connection)
    if pooled.is_valid:
        pooled.invalidate()


@contextmanager
def _our_errors(engine: sa.Engine) -> Iterator[None]:
    """Raises errors of the database as errors of ours, which know what in them is a place."""
    try:
        with _translated(engine):
            yield
    except Unreachable as error:
        error.places = places(engine.url)
        raise


@contextmanager
def _translated(engine: sa.Engine) -> Iterator[None]:
    """Raises errors of the database as `InvalidInput` or `Unreachable`, in one sentence.

    Other errors of SQL (a violated constraint, a wrong statement) are bugs of ours and stay as they
    are.
    """
    driver = engine.dialect.loaded_dbapi
    connection_errors: tuple[type[Exception], ...] = (
        exc.OperationalError,
        exc.InterfaceError,
        driver.OperationalError,
        driver.InterfaceError,
    )
    name = public_name(engine.url)
    try:
        yield
    except UnicodeEncodeError as error:
        # Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
        raise InvalidInput(f"a field holds what the database cannot: {error}") from error
    except exc.TimeoutError as error:
        raise Unreachable(
            f"the database {name} is busy: no connection was free for {POOL_SECONDS} s"
        ) from error
    except (exc.DBAPIError, driver.Error) as error:
        cause = getattr(error, "orig", None) or error
        ours = connections_of(engine).explain(cause)
        if ours is not None:
            raise ours from error
        reason = str(cause).strip().partition("\n")[0]
        if isinstance(error, (exc.DataError, driver.DataError)):
            # For example a NUL character in an id that is looked up: PostgreSQL cannot have it in a
            # text.
            raise InvalidInput(f"a field holds what the database cannot: {reason}") from error
        if isinstance(error, connection_errors):
            raise Unreachable(f"the database {name} does not answer: {reason}") from error
        # SQLite raises the base class for a damaged file. The derived classes that are left here
        # would be bugs of ours.
        if type(cause) is not driver.DatabaseError:
            raise
        raise Unreachable(
            f"the database {name} cannot be read: {reason}; restore a backup"
        ) from error


def database_now(connection: sa.Connection) -> int:
    """The database's time, microseconds since 1970 UTC. For SQLite that is the host's time."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(connection.execute(POSTGRES_CLOCK).scalar_one())


def driver_database_now(driver: Driver) -> int:
    """`database_now` on the driver's own connection."""
    if driver.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(driver.all(Statement(POSTGRES_CLOCK.text, None))[0][0])


def clock_question(dialect: sa.Dialect) -> list[Statement]:
    """The statement, if it takes one, that `clock_answer` needs to have been asked last."""
    return [] if dialect.name == "sqlite" else [Statement(POSTGRES_CLOCK.text, None)]


def clock_answer(driver: Driver) -> int:
    """`database_now` of a transaction that began with `clock_question`."""
    if driver.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(driver.answers[-1][0][0])


def insert_new(connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> int | None:
    """Inserts a row; its key, or None when another row has one of its unique values.

    Another transaction may insert that row at the same time: this is no error.
    """
    # A dialect's module is loaded where it is used: PostgreSQL's takes a tenth of a server's start.
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
    statement = insert(table).values(values).on_conflict_do_nothing().returning(table.c.key)
    key: int | None = connection.execute(statement).scalar_one_or_none()
    return key


def timestamp_to_column(timestamp: datetime) -> int:
    """A timestamp as the tables have it: microseconds since 1970 UTC."""
    # Without `astimezone`, which fails within a day of the calendar's first and last date.
    return (timestamp - EPOCH) // MICROSECOND


def timestamp_from_column(value: int) -> datetime:
    """A timestamp (UTC) from a column."""
    return EPOCH + timedelta(0, 0, value)
