"""Calls of jobs go before HTTP: a write never waits for more than what HTTP has begun."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from selectors import SelectorKey

from typing_extensions import override

# A call that takes longer waits for its disk, its database or its client, and needs no processor.
CALL_SECONDS = 0.02
# For how long HTTP waits at most. Under calls without a pause it so gets a hundred turns a second.
TURN_SECONDS = 0.01


class Arrival:
    """A gRPC call that has come, until it ends or `CALL_SECONDS` have passed."""

    __slots__ = ("_precedence", "at")

    def __init__(self, precedence: Precedence) -> None:
        """The call comes now."""
        self._precedence = precedence
        self.at = time.monotonic()

    def close(self) -> None:
        """The call has ended, or needs no precedence any more."""
        self._precedence.end(self)


class Precedence:
    """Lets HTTP wait while gRPC calls are being answered.

    Both sides share the lock of Python's interpreter. A call takes that lock a dozen times, each
    time behind the thread that computes, and HTTP computes without a pause where pages are loaded
    all the time. Calls come from jobs, and who looks at a page can wait.

    Any thread may use this.
    """

    def __init__(self) -> None:
        """No call is being answered."""
        self._calls: dict[Arrival, None] = {}  # the youngest last
        self._changed = threading.Condition()

    def arrive(self) -> Arrival:
        """A call comes. HTTP gives way to it from now on."""
        with self._changed:
            arrival = Arrival(self)
            self._calls[arrival] = None
            # A call whose client has left may never be answered, and so never end.
            while (oldest := next(iter(self._calls))).at + CALL_SECONDS <= arrival.at:
                del self._calls[oldest]
        return arrival

    def end(self, arrival: Arrival) -> None:
        """See `Arrival.close`."""
        with self._changed:
            self._calls.pop(arrival, None)
            if self._until() <= time.monotonic():
                self._changed.notify_all()

    def give_way(self) -> None:
        """Returns once no call is being answered that came less than `CALL_SECONDS` ago, and after
        `TURN_SECONDS` at the latest.
        """
        if not self._calls:  # a look without the lock, which costs each event of HTTP nothing
            return
        turn = time.monotonic() + TURN_SECONDS
        with self._changed:
            while (left := min(self._until(), turn) - time.monotonic()) > 0:
                self._changed.wait(left)

    def _until(self) -> float:
        """Until when HTTP is to wait if no call ends, by `time.monotonic`."""
        for youngest in reversed(self._calls):
            return youngest.at + CALL_SECONDS
        return 0.0


class _YieldingSelector(selectors.DefaultSelector):
    def __init__(self, precedence: Precedence) -> None:
        super().__init__()
        self._precedence = precedence

    @override
    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        found = super().select(timeout)
        if found:
            self._precedence.give_way()
        return found


def yielding_loop(precedence: Precedence) -> asyncio.AbstractEventLoop:
    """An event loop that gives way each time before it handles what came: requests, and what
    threads have computed.
    """
    return asyncio.SelectorEventLoop(_YieldingSelector(precedence))
