"""Copying a SQLite database, and putting a copy in the place of one."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from flerm_core._files import atomic_path
from flerm_core.errors import InvalidInput, NotFound, Refused
from flerm_server.store.sql.database_url import database_file, public_name
from flerm_server.store.sql.engine import driver_transaction, refuse_network_file_system
from flerm_server.store.sql.foreign_objects import foreign_objects
from flerm_server.store.sql.revisions import head, newer_than_known
from flerm_server.store.sql.sqlite_ownership import (
    Header,
    LockFile,
    Record,
    new_epoch,
    remove_log,
)

# The bytes of a SQLite file on which its connections hold their locks.
SQLITE_LOCKS = (0x40000000, 512)
REGISTRY = {"alembic_version", "schema_support", "recordings"}  # tables that every one has


def backup(engine: sa.Engine, destination: Path) -> Path:
    """Copies a SQLite database, which may be in use, consistently to the new file `destination`.

    Raises `InvalidInput` for a PostgreSQL database (which pg_dump copies), and when `destination`
    exists; `Refused` when it cannot be written. Then no part of a copy is left.
    """
    if engine.dialect.name != "sqlite":
        raise InvalidInput(
            f"backup copies SQLite files; for {public_name(engine.url)} use pg_dump "
            "(see docs/registry.md)"
        )
    source = database_file(engine.url)
    if destination.exists():
        raise InvalidInput(f"backup destination {destination} exists already: name a new file")
    with (
        driver_transaction(engine) as driver,
        _written(destination, source),
        atomic_path(destination) as partial,
    ):
        _copy(driver.connection, partial, new_epoch())
    return destination


def restore(url: sa.URL, source: Path) -> Path:
    """Puts a copy of the SQLite database `source` in the place of the one at `url`; its file.

    Whenever this is interrupted, the old database is there, or the whole new one. Raises `NotFound`
    without `source`; `InvalidInput` for a PostgreSQL URL; and `Refused` when the database is in
    use, when `source` is damaged or not a registry, and when there is no room.
    """
    if url.get_backend_name() != "sqlite":
        raise InvalidInput(
            f"restore replaces SQLite files; for {public_name(url)} use pg_restore "
            "(see docs/registry.md)"
        )
    file = database_file(url)
    if not source.is_file():
        raise NotFound(f"backup {source}: there is no such file")
    if file.exists() and source.samefile(file):
        raise InvalidInput(f"backup {source}: it is the database itself")
    refuse_network_file_system(file)
    with closing(LockFile(file)) as lock, _alone(lock, file):
        partial = file.with_name(f".{file.name}.restoring")
        epoch = new_epoch()
        try:
            with _written(partial, source):
                partial.unlink(missing_ok=True)
                with closing(_open_copy(source)) as opened:
                    _copy(opened, partial, epoch)
                _check(partial, source)
                _give_owner(partial, like=file)
                # From here to the end, whoever opens the new file removes the old one's log first.
                lock.write(replace(lock.record() or Record(), restored=epoch))
                partial.replace(file)
                _sync(file.absolute().parent)
        finally:
            _remove_partial(partial)
        remove_log(file)
        header = Header.read(file)
        assert header is not None
        lock.write(Record((0, 0), (header.epoch,), header.changes, header.schema))
    return file


def _copy(source: sqlite3.Connection, destination: Path, epoch: int) -> None:
    """Copies a database to a new file, which gets an epoch of its own, on the disk."""
    destination.touch(mode=0o600)
    try:
        with closing(sqlite3.connect(destination, isolation_level=None)) as copy:
            source.backup(copy)
            copy.execute(f"PRAGMA user_version={epoch}")
            # The copy had the log's mode from its source: its epoch is to be in the file itself.
            copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        _sync(destination)
    except BaseException:
        _remove_partial(destination)
        raise


def _open_copy(source: Path) -> sqlite3.Connection:
    """A copy that nobody writes to. It may lie in a folder that may not be written."""
    log = Path(f"{source}-wal")
    alone = "" if log.exists() and log.stat().st_size else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(source))}?mode=ro{alone}", uri=True)


def _check(copy: Path, source: Path) -> None:
    """Raises `Refused` for a copy that is damaged, or that is not a registry's."""
    with closing(sqlite3.connect(copy)) as connection:
        found = connection.execute("PRAGMA integrity_check(1)").fetchall()
        dangling = connection.execute("PRAGMA foreign_key_check").fetchone()
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()
        }
        strange = foreign_objects(lambda sql: connection.execute(sql).fetchall())
        newer = _newer(connection) if tables >= REGISTRY else ""
    if found != [("ok",)] or dangling is not None:
        reason = found[0][0] if found != [("ok",)] else f"rows without their {dangling[2]}"
        raise Refused(f"backup {source}: it is damaged ({reason}); nothing was changed")
    if not tables >= REGISTRY:
        raise Refused(f"backup {source}: it is not a registry's database; nothing was changed")
    if strange:
        raise Refused(f"backup {source}: no registry made {strange} in it; nothing was changed")
    if newer:
        raise Refused(f"backup {source}: it {newer}, then restore; nothing was changed")


def _newer(copy: sqlite3.Connection) -> str:
    """Why this version cannot serve a copy that a newer one made; empty when it can.

    An older copy can be upgraded.
    """
    revisions = (
        copy.execute(f"SELECT max({column}) FROM {table}").fetchone()[0]
        for table, column in (
            ("alembic_version", "version_num"),
            ("schema_support", "oldest_server"),
        )
    )
    current, oldest = map(str, revisions)
    return newer_than_known(str(current), str(oldest or ""), head())


@contextmanager
def _alone(lock: LockFile, file: Path) -> Iterator[None]:
    """Holds the database alone, also against programs that know nothing of the lock file."""
    in_use = Refused(
        f"db sqlite:///{file}: a server or another command is using it; stop it, then restore"
    )
    if not lock.lock(alone=True):
        raise in_use
    descriptor = os.open(file, os.O_RDWR) if file.exists() else None
    try:
        if descriptor is not None:
            start, length = SQLITE_LOCKS
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            except OSError:
                raise in_use from None
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def _written(destination: Path, source: Path) -> Iterator[None]:
    """Raises `Refused` where the block cannot read `source` or write to `destination`."""
    try:
        yield
    except sqlite3.Error as error:
        if type(error) is sqlite3.DatabaseError:  # what SQLite raises for a damaged file
            raise Refused(f"{source} is damaged: {error}; nothing was changed") from error
        raise Refused(f"{destination} cannot be written: {error}; nothing was kept") from error
    except OSError as error:
        raise Refused(
            f"{destination} cannot be written: {error.strerror}; nothing was kept"
        ) from error


def _give_owner(copy: Path, *, like: Path) -> None:
    """Gives a copy the mode of the file that it replaces, and, as root, its owner."""
    with suppress(FileNotFoundError):
        found = like.stat()
        copy.chmod(found.st_mode & 0o777)
        if os.geteuid() == 0:
            os.chown(copy, found.st_uid, found.st_gid)


def _remove_partial(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    remove_log(partial)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
