"""Who uses a SQLite file, and whether the write-ahead log beside the file belongs to it.

SQLite plays whatever log lies beside a file into that file. Where somebody put another file in the
place of one whose server was killed, this destroys both. SQLite cannot tell the two apart, so a
record in the file `NAME.lock` does: the record has the numbers in the header of the file to which
the log belongs. All processes that use the file hold a shared lock on `NAME.lock`, and a restore
holds it alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from flerm_core.errors import Refused, Unreachable

JOIN_SECONDS = 5.0  # how long a claim waits for another process that is claiming the file
RECORD_BYTES = 512  # written at once, so that a crash leaves the old record or the new one
HEADER_BYTES = 100


class FileIds(NamedTuple):
    """Device and inode of a database's three files; None where there is none."""

    database: tuple[int, int] | None
    log: tuple[int, int] | None
    shared_memory: tuple[int, int] | None


def file_ids(file: Path) -> FileIds:
    """The files that lie at these names now."""
    # Texts, because every transaction asks: a path takes longer to make than the file to be found.
    name = str(file)
    return FileIds(file_id(name), file_id(f"{name}-wal"), file_id(f"{name}-shm"))


def file_id(name: str | Path) -> tuple[int, int] | None:
    """Device and inode of the file with this name; None where there is none."""
    try:
        found = os.stat(name)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@dataclass(frozen=True, slots=True)
class Header:
    """Numbers in the header of a SQLite file, as it is without its log.

    `changes` and `schema` only grow in one file, and are small in a new copy. `epoch` is SQLite's
    `user_version`, which nothing else here uses: another one for each claim and each copy.
    """

    changes: int
    schema: int
    epoch: int

    @classmethod
    def read(cls, file: Path) -> Header | None:
        """The header of a file that no connection of this process has open; None: it is empty.

        A file that is closed loses all locks that this process has on it, SQLite's among them.
        """
        with file.open("rb") as opened:
            data = opened.read(HEADER_BYTES)
        if len(data) < HEADER_BYTES:
            return None
        changes, schema, epoch = (int.from_bytes(data[at : at + 4], "big") for at in (24, 40, 60))
        return cls(changes, schema, epoch)


@dataclass(frozen=True, slots=True)
class Record:
    """What the lock file says: to which file the log belongs.

    file: device and inode of the file that is in use.
    epochs: one of them is the file's; two while the epoch changes.
    changes, schema: at least these.
    restored: the epoch of a file that a restore is putting there, whose predecessor's log may still
        lie beside it; 0: none.
    """

    file: tuple[int, int] = (0, 0)
    epochs: tuple[int, ...] = ()
    changes: int = 0
    schema: int = 0
    restored: int = 0

    def fits(self, header: Header) -> bool:
        """Whether the log belongs to the file with this header."""
        return (
            header.epoch in self.epochs
            and header.changes >= self.changes
            and header.schema >= self.schema
        )


class LockFile:
    """The open file `NAME.lock` beside a database file."""

    def __init__(self, file: Path) -> None:
        """Opens it, without a lock. Raises `Unreachable` where the folder does not allow that."""
        path = file.with_name(f"{file.name}.lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if file.exists() and os.fstat(self._descriptor).st_uid == os.geteuid():
                # Whoever may use the file may use its lock, also where root made the lock.
                found = file.stat()
                os.fchmod(self._descriptor, found.st_mode & 0o666)
                if os.geteuid() == 0:
                    os.fchown(self._descriptor, found.st_uid, found.st_gid)
        except OSError as error:
            raise Unreachable(
                f"db sqlite:///{file}: {path} cannot be opened for writing ({error.strerror}); "
                "a server must be allowed to write to the file and to its folder"
            ) from error

    def lock(self, *, alone: bool) -> bool:
        """Takes the lock, alone or shared with others, without waiting; whether it was free."""
        try:
            fcntl.flock(
                self._descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
            )
        except BlockingIOError:
            return False
        return True

    def record(self) -> Record | None:
        """What it says; None where nobody has written to it."""
        data = os.pread(self._descriptor, RECORD_BYTES, 0).strip()
        if not data:
            return None
        found = json.loads(data)
        return Record(**found | {name: tuple(found[name]) for name in ("file", "epochs")})

    def write(self, record: Record) -> None:
        """Replaces what it says, on the disk."""
        os.pwrite(self._descriptor, json.dumps(asdict(record)).encode().ljust(RECORD_BYTES), 0)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Ends the lock."""
        os.close(self._descriptor)


class SqliteOwnership:
    """This engine's share of a database file."""

    def __init__(self, file: Path) -> None:
        """Claims nothing yet."""
        self._file = file
        self._lock: LockFile | None = None
        self._claimed_before = False
        self.claimed: tuple[int, int] | None = None

    def claim(self) -> None:
        """Makes sure that the file that lies there now may be opened.

        Raises `Unreachable` where there is none, or where a restore is putting one there. Where the
        log beside the file belongs to another one, raises `Refused` at first, and `Unreachable` for
        a file that was replaced afterwards.
        """
        found = file_id(self._file)
        if found is None:
            raise Unreachable(f"the database file {self._file} is not there")
        if found == self.claimed:
            return
        self.release()
        lock = LockFile(self._file)
        try:
            if lock.lock(alone=True):
                self._take_over(lock)
            self._join(lock, found)
        except BaseException:
            lock.close()
            raise
        self._lock, self.claimed, self._claimed_before = lock, found, True

    def release(self) -> None:
        """Ends the claim."""
        if self._lock is not None:
            self._lock.close()
        self._lock = self.claimed = None

    def _take_over(self, lock: LockFile) -> None:
        """As the only user: checks that the log belongs to the file, and gives it a new epoch."""
        record, header = lock.record(), Header.read(self._file)
        log = Path(f"{self._file}-wal")
        if record is not None and header is not None and header.epoch == record.restored:
            remove_log(self._file)
        elif (
            log.exists()
            and log.stat().st_size
            and (header is None or (record is not None and not record.fits(header)))
        ):
            error = Unreachable if self._claimed_before else Refused
            raise error(
                f"db sqlite:///{self._file}: the log {log.name} beside it belongs to another file, "
                "which this one has replaced, and would destroy it: put the old file back, "
                "or restore a copy by `flerm db restore COPY`"
            )
        lock.write(self._record(header, epoch := new_epoch()))
        with closing(sqlite3.connect(self._file)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA user_version={epoch}")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        lock.write(self._record(Header.read(self._file), epoch))

    def _record(self, header: Header | None, epoch: int) -> Record:
        found = file_id(self._file) or (0, 0)
        if header is None:
            return Record(found, (epoch,))
        return Record(found, (header.epoch, epoch), header.changes, header.schema)

    def _join(self, lock: LockFile, found: tuple[int, int]) -> None:
        """As one of several users: waits for the shared lock. Raises `Unreachable`."""
        end = time.monotonic() + JOIN_SECONDS
        while not lock.lock(alone=False):
            if time.monotonic() > end:
                raise Unreachable(f"the database file {self._file} is being restored")
            time.sleep(0.02)
        record = lock.record()
        if record is not None and record.file != found:
            raise Unreachable(
                f"the database file {self._file} was replaced under a server that still uses the "
                "old one: wait until the server has noticed, or stop it"
            )


def new_epoch() -> int:
    """A number for `PRAGMA user_version` that no file has yet."""
    return secrets.randbelow(2**31 - 1) + 1


def remove_log(file: Path) -> None:
    """Removes the log of a file that nobody has open, and what belongs to the log."""
    for suffix in ("-wal", "-shm", "-journal"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
