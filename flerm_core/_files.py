"""Files that only their owner may read, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any


def open_private(
    path: Path, mode: str, *, newline: str | None = None, follow: bool = True
) -> IO[Any]:
    """`open` for writing, text as UTF-8. A file that it makes is readable by its owner alone,
    whatever the umask.

    follow: whether `path` may be a symbolic link; otherwise `OSError` is raised for one.
    """
    more = os.O_CLOEXEC if follow else os.O_CLOEXEC | os.O_NOFOLLOW

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | more, 0o600)

    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, newline=newline, encoding=encoding, opener=opener)


def make_private_folder(folder: Path) -> None:
    """Makes a folder with its parents where they are not there, for their owner alone.

    `Path.mkdir` gives the parents the mode of the umask. Raises `OSError`.
    """
    for each in reversed((folder, *folder.parents)):
        if each.exists() and not each.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(each))
        each.mkdir(mode=0o700, exist_ok=True)


def is_own_file(path: Path) -> bool:
    """Whether `path` is a plain file of this process's user, and no link to one."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which replaces `path` when the block ends.

    The file at the path is empty, and only its owner may read it. A block that raises leaves `path`
    as it was. Two processes may write the same file at once: the last one to finish wins. No fsync:
    the content outlives the process, not a crash of the host. Raises `OSError` where the disk does.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`. See `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
