"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which replaces `path` when the block ends.

    A block that raises leaves `path` as it was. Two processes may write the same file at once: the
    last one to finish wins. No fsync: the content outlives the process, not a crash of the host.
    Raises `OSError` where the disk does.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`. See `atomic_path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
