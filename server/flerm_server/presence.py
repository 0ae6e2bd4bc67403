"""Whether the caller still waits for the answer, and what ends the work where it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class CallerGone(Exception):
    """Nobody waits for the answer any more."""


class Presence:
    """The presence of one caller, from the request until the answer. Any thread may end it."""

    def __init__(self) -> None:
        """The caller waits."""
        self._lock = threading.Lock()
        self._gone = False
        self._calls: list[Callable[[], None]] = []

    @property
    def gone(self) -> bool:
        """Whether the caller has left."""
        return self._gone

    def require(self) -> None:
        """Raises `CallerGone` where the caller has left."""
        if self._gone:
            raise CallerGone

    def end(self) -> None:
        """The caller leaves. What is called for that returns at once."""
        with self._lock:
            self._gone, calls = True, list(self._calls)
        for call in calls:
            call()

    @contextmanager
    def calling(self, call: Callable[[], None]) -> Iterator[None]:
        """Calls `call`, on any thread, when the caller leaves while the block runs.

        Raises `CallerGone` where the caller had left before the block began.
        """
        with self._lock:
            self.require()
            self._calls.append(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.remove(call)


_current: ContextVar[Presence] = ContextVar("presence")
ALWAYS = Presence()
"""That of a caller who never leaves: the server itself, an operator's command."""


def current_presence() -> Presence:
    """That of the caller whom this context works for."""
    return _current.get(ALWAYS)


def work_for(presence: Presence) -> None:
    """Makes `presence` that of the caller in this context, and in those copied from it later."""
    _current.set(presence)
