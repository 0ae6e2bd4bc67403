"""The database's connection: SQLite as durable as it can be, PostgreSQL by psycopg 3; clock and errors alike on both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from flerm_core.errors import FlermError, InvalidInput, Refused, Unreachable
from flerm_server.store.sql.compiled_statements import Driver

BUSY_SECONDS = 30  # how long a SQLite writer waits for another
# Kinds of file system that several hosts share.
NETWORK = frozenset((
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "ceph-fuse", "glusterfs", "lustre",
    "gpfs", "beegfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "sshfs", "s3fs", "gcsfuse", "rclone", "davfs", "davfs2",
    "juicefs",
))  # fmt: skip
EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)

# clock_timestamp, not now(): the latter stands still within a transaction.
POSTGRES_CLOCK = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")


def parse_url(text: str) -> sa.URL:
    """The URL of a database this server can use. Raises `InvalidInput` naming the kinds there are."""
    try:
        url = sa.make_url(text)
    except exc.ArgumentError:
        url = None
    kind = url.get_backend_name() if url else ""
    if url is None or kind not in ("sqlite", "postgresql"):
        raise InvalidInput(
            f"db {text!r}: sqlite:///FILE or postgresql://USER@HOST/DATABASE is allowed"
        )
    if kind == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.database in (None, "", ":memory:") or "mode=memory" in text:
        raise InvalidInput(
            f"db {text!r}: a registry needs a file; a database in memory would lose what was acknowledged"
        )
    return url


def open_engine(url: sa.URL) -> sa.Engine:
    """An engine whose transactions are durable when committed, and write transactions serial on SQLite. Connects lazily.

    Raises `Refused` for a SQLite file on a network file system.
    """
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(
            url, pool_pre_ping=True, pool_size=8, max_overflow=24, pool_recycle=1800
        )
        sa.event.listen(engine, "connect", _prepare_postgres)
        return engine
    refuse_network(database_file(url))
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=56,
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def refuse_network(file: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raises `Refused` when `file` lies on a network file system, by the kernel's list of `mounts` (where there is one).

    SQLite's write-ahead log is shared memory of one host: on such a disk two hosts destroy the file, and one dies of SIGBUS
    when the connection drops.
    """
    if not mounts.exists():
        return
    place = file.absolute().parent.resolve()
    found = ("", "")
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode("latin-1", "backslashreplace").decode(
            "unicode_escape"
        )  # blanks are written \\040
        if place.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    point, kind = found
    if kind.removeprefix("fuse.") in NETWORK:
        raise Refused(
            f"db {file}: it lies on a network file system ({kind} at {point}), where SQLite's log would lose data; "
            "keep the file on a local disk, or use PostgreSQL"
        )


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver opens no transactions of its own: `_begin_sqlite` does.
    connection.isolation_level = None
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise Unreachable(
            f"SQLite cannot use its write-ahead log here (journal mode {mode!r}): keep the file on a local disk"
        )
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_postgres(connection: Any, _: Any) -> None:
    # A database whose default is to acknowledge before it has written would break the store's promise.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads before it writes must hold the write lock from its first statement, or it may fail half-way.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def transaction(
    engine: sa.Engine, *, writes: bool = False, snapshot: bool = False
) -> Iterator[sa.Connection]:
    """One transaction. Database trouble becomes `Unreachable`, in one sentence.

    `snapshot`: all that it reads is of one moment. On SQLite it always is.
    """
    with _trouble(engine), engine.connect() as connection:
        if writes:
            connection = connection.execution_options(writes=True)
        if snapshot and engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def driver_transaction(engine: sa.Engine, *, writes: bool = False) -> Iterator[Driver]:
    """One transaction on the driver's own connection, without what SQLAlchemy does around one (100 µs and more)."""
    with _trouble(engine):
        pooled = engine.raw_connection()
        try:
            connection: Any = pooled.driver_connection
            if engine.dialect.name == "sqlite":
                connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            yield Driver(connection, engine.dialect)
            connection.commit()
        except BaseException as error:
            # A connection that failed goes; one that was only refused goes back, and the pool rolls it back.
            if not isinstance(error, FlermError):
                pooled.invalidate()
            raise
        finally:
            pooled.close()


@contextmanager
def _trouble(engine: sa.Engine) -> Iterator[None]:
    driver = engine.dialect.loaded_dbapi
    troubles: tuple[type[Exception], ...] = (
        exc.OperationalError,
        exc.InterfaceError,
        exc.TimeoutError,
        driver.OperationalError,
        driver.InterfaceError,
    )
    try:
        yield
    except (exc.DataError, driver.DataError) as error:
        # Such as a NUL in an id that is looked up: PostgreSQL has no such text.
        raise InvalidInput(f"a field holds what the database cannot: {_reason(error)}") from error
    except troubles as error:
        raise Unreachable(
            f"the database {engine.url.render_as_string(hide_password=True)} does not answer: {_reason(error)}"
        ) from error
    except (exc.DatabaseError, driver.DatabaseError) as error:
        # SQLite has no kind of its own for a damaged file; each of the other kinds would be a bug of ours.
        if type(getattr(error, "orig", None) or error) is not driver.DatabaseError:
            raise
        raise Unreachable(
            f"the database {engine.url.render_as_string(hide_password=True)} cannot be read: {_reason(error)}; restore a backup"
        ) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def database_now(connection: sa.Connection) -> int:
    """The database's clock, microseconds since 1970 UTC. SQLite lives in this host: its clock is ours."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(connection.execute(POSTGRES_CLOCK).scalar_one())


def driver_database_now(driver: Driver) -> int:
    """The same on the driver's own connection."""
    return (
        time.time_ns() // 1000
        if driver.dialect.name == "sqlite"
        else int(driver.all(POSTGRES_CLOCK.text, None)[0][0])
    )


def insert_new(connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> int | None:
    """Inserts one row; its key, or None when a row with one of its unique values was there (or came in between)."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(values).on_conflict_do_nothing().returning(table.c.key)
    key: int | None = connection.execute(statement).scalar_one_or_none()
    return key


def timestamp_to_column(moment: datetime) -> int:
    """A moment as the database keeps it."""
    return (
        moment - EPOCH
    ) // MICROSECOND  # not by way of UTC: at the calendar's ends that has no date


def timestamp_from_column(value: int) -> datetime:
    """A moment from the database."""
    return EPOCH + timedelta(microseconds=value)


def database_file(url: sa.URL) -> Path:
    """The file of a SQLite database."""
    return Path(url.database or "")
