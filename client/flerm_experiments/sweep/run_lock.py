"""The lock of a run's folder: a job is run by one sweep at a time.

A folder has two locks. `watched` is held by the sweep that starts the run or waits for its end.
`lock` is held by that sweep and by the run's processes, so it outlives a sweep that is killed. A
sweep that holds `watched` and waits for `lock` has found a run whose own sweep was killed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LOOK = 0.1  # seconds between two looks at a lock
_GRACE = 30.0  # seconds from SIGTERM to SIGKILL: torchrun gives its ranks as long

Stopped = Callable[[], bool]
"""Whether the sweep was stopped."""


class RunLock:
    """The lock that a run's processes inherit. Its file has the run's process group."""

    def __init__(self, file: IO[str]) -> None:
        """file: opened for reading and writing."""
        self._file = file

    def fileno(self) -> int:
        """The descriptor that the run's process is to inherit."""
        return self._file.fileno()

    def belongs_to(self, group: int) -> None:
        """Writes down the run's process group."""
        self._file.truncate(0)
        self._file.write(str(group))
        self._file.flush()

    def end_run(self) -> None:
        """Ends the process group of the run that holds this lock."""
        self._file.seek(0)
        if group := int(self._file.read() or 0):
            end_group(group, lambda: _take(self._file))


@contextmanager
def running_alone(folder: Path, stopped: Stopped) -> Iterator[RunLock]:
    """Waits until no other sweep, and no process of an earlier run, is at work in `folder`.

    stopped: called again and again while it waits.

    Raises `KeyboardInterrupt` when stopped. A run whose sweep was killed is then ended. A run that
    another sweep watches goes on.
    """
    with (folder / "watched").open("a+") as watched, (folder / "lock").open("a+") as file:
        lock = RunLock(file)
        while not _take(watched):
            _pause_unless(stopped)
        try:
            while not _take(file):
                _pause_unless(stopped)
        except KeyboardInterrupt:
            lock.end_run()
            raise
        yield lock


def end_group(group: int, over: Callable[[], bool]) -> None:
    """Ends a process group: by SIGTERM, and by SIGKILL where that takes too long.

    over: whether the group has ended.
    """
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        until = time.monotonic() + seconds
        while not over() and time.monotonic() < until:
            time.sleep(_LOOK)


def _pause_unless(stopped: Stopped) -> None:
    if stopped():
        raise KeyboardInterrupt
    time.sleep(_LOOK)


def _take(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
