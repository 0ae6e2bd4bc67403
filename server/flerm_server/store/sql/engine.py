"""Connections, transactions, clock and errors of the database, the same for SQLite and PostgreSQL.

A committed transaction is durable on both. PostgreSQL is reached by psycopg 3.
"""

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

BUSY_SECONDS = 30  # how long a SQLite writer waits for another writer
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


def parse_url(text: str) -> sa.URL:
    """The URL of a database that a server can use. Raises `InvalidInput` for any other."""
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
            f"db {text!r}: a registry needs a file; "
            "a database in memory would lose what was acknowledged"
        )
    return url


def open_engine(url: sa.URL) -> sa.Engine:
    """An engine whose committed transactions are durable. It connects at its first use.

    On SQLite, write transactions run one after the other. Raises `Refused` for a SQLite file on a
    network file system.
    """
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(
            url, pool_pre_ping=True, pool_size=8, max_overflow=24, pool_recycle=1800
        )
        sa.event.listen(engine, "connect", _configure_postgres)
        return engine
    refuse_network_file_system(database_file(url))
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=8,
        max_overflow=56,
    )
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def refuse_network_file_system(file: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Raises `Refused` when `file` lies on a network file system.

    SQLite's write-ahead log is in memory that only the processes of one host share. Two hosts that
    use one file destroy it, and a process is killed by SIGBUS when the connection to the file
    system breaks. `mounts`: the kernel's list of file systems; where it does not exist, nothing is
    checked.
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


def _configure_sqlite(connection: Any, _: Any) -> None:
    # `_begin_sqlite` opens transactions; the driver must not.
    connection.isolation_level = None
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise Unreachable(
            f"SQLite cannot use its write-ahead log here (journal mode {mode!r}): "
            "keep the file on a local disk"
        )
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _configure_postgres(connection: Any, _: Any) -> None:
    # A database may be configured to acknowledge a commit before it is on disk. The store promises
    # that what it acknowledged is durable.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    connection.commit()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads before it writes takes the write lock with its first statement.
    # Otherwise its first write fails where another transaction has written since it read.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def transaction(
    engine: sa.Engine, *, writes: bool = False, snapshot: bool = False
) -> Iterator[sa.Connection]:
    """A transaction. Raises errors of the database as errors of ours: see `_our_errors`.

    writes: it may write. snapshot: its statements all read the same state of the database. On
    SQLite they always do.
    """
    with _our_errors(engine), engine.connect() as connection:
        if writes:
            connection = connection.execution_options(writes=True)
        if snapshot and engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def driver_transaction(engine: sa.Engine, *, writes: bool = False) -> Iterator[Driver]:
    """A transaction on the driver's own connection; `writes` as in `transaction`.

    It saves the 100 µs and more that SQLAlchemy adds to a transaction.
    """
    with _our_errors(engine):
        pooled = engine.raw_connection()
        try:
            connection: Any = pooled.driver_connection
            if engine.dialect.name == "sqlite":
                connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            yield Driver(connection, engine.dialect)
            connection.commit()
        except BaseException as error:
            # After an error of ours the connection still works, and the pool rolls it back. After
            # any other error the connection may be broken, and is dropped.
            if not isinstance(error, FlermError):
                pooled.invalidate()
            raise
        finally:
            pooled.close()


@contextmanager
def _our_errors(engine: sa.Engine) -> Iterator[None]:
    """Raises errors of the database as `InvalidInput` or `Unreachable`, in one sentence.

    Other errors of SQL (a violated constraint, a wrong statement) are bugs of ours and stay as they
    are.
    """
    driver = engine.dialect.loaded_dbapi
    connection_errors: tuple[type[Exception], ...] = (
        exc.OperationalError,
        exc.InterfaceError,
        exc.TimeoutError,
        driver.OperationalError,
        driver.InterfaceError,
    )
    try:
        yield
    except (exc.DataError, driver.DataError) as error:
        # For example a NUL character in an id that is looked up: PostgreSQL cannot have it in a
        # text.
        raise InvalidInput(f"a field holds what the database cannot: {_reason(error)}") from error
    except connection_errors as error:
        raise Unreachable(
            f"the database {_name(engine)} does not answer: {_reason(error)}"
        ) from error
    except (exc.DatabaseError, driver.DatabaseError) as error:
        # SQLite raises the base class for a damaged file. The derived classes that are left here
        # would be bugs of ours.
        if type(getattr(error, "orig", None) or error) is not driver.DatabaseError:
            raise
        raise Unreachable(
            f"the database {_name(engine)} cannot be read: {_reason(error)}; restore a backup"
        ) from error


def _name(engine: sa.Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def database_now(connection: sa.Connection) -> int:
    """The database's time, microseconds since 1970 UTC. For SQLite that is the host's time."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    return int(connection.execute(POSTGRES_CLOCK).scalar_one())


def driver_database_now(driver: Driver) -> int:
    """`database_now` on the driver's own connection."""
    return (
        time.time_ns() // 1000
        if driver.dialect.name == "sqlite"
        else int(driver.all(POSTGRES_CLOCK.text, None)[0][0])
    )


def insert_new(connection: sa.Connection, table: sa.Table, values: dict[str, Any]) -> int | None:
    """Inserts a row; its key, or None when another row has one of its unique values.

    Another transaction may insert that row at the same time: this is no error.
    """
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(values).on_conflict_do_nothing().returning(table.c.key)
    key: int | None = connection.execute(statement).scalar_one_or_none()
    return key


def timestamp_to_column(timestamp: datetime) -> int:
    """A timestamp as the tables have it: microseconds since 1970 UTC."""
    # Without `astimezone`, which fails within a day of the calendar's first and last date.
    return (timestamp - EPOCH) // MICROSECOND


def timestamp_from_column(value: int) -> datetime:
    """A timestamp (UTC) from a column."""
    return EPOCH + timedelta(microseconds=value)


def database_file(url: sa.URL) -> Path:
    """The file of a SQLite database."""
    return Path(url.database or "")
