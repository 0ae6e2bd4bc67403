"""A number that callers share, of which none may take all."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flerm_core.errors import LimitExceeded
from flerm_server.presence import Presence, current_presence

SHARE = 0.75  # the most of a limit that one caller may take


class SharedLimit:
    """Something of which a server has `most`, such as calls, streams or bytes in memory.

    One caller gets at most a share of it, so that one token cannot take what all of them need.
    Callers may be on any thread.
    """

    def __init__(self, name: str, most: int, what: str, *, share: float = SHARE) -> None:
        """name: the limit's name.
        what: what is counted, for sentences: 'calls in flight'.
        """
        self.name, self._what = name, what
        self._most = most
        self._most_of_one = max(1, -int(-most * share // 1))
        self._taken: Counter[str] = Counter()
        self._all = 0
        self._lock = threading.Lock()
        # Waiters are woken only by what can help them: woken all each time, they would cost more
        # than the calls.
        self._freed = threading.Condition(self._lock)  # of the whole
        self._freed_of: dict[str, threading.Condition] = {}  # of one caller's share

    def take(self, caller: str, amount: int = 1, *, wait: float = 0.0) -> None:
        """Takes `amount` for `caller`: the id of a token, or the address of one without.

        wait: for how many seconds to wait until there is enough.

        Raises `LimitExceeded`, and `CallerGone` where the caller leaves meanwhile.
        """
        presence = current_presence()
        deadline = time.monotonic() + wait
        with self._lock:
            while (refusal := self._refusal(caller, amount)) is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LimitExceeded(refusal)
                self._wait(self._condition(caller, amount), left, presence)
            self._taken[caller] += amount
            self._all += amount

    def _wait(self, freed: threading.Condition, seconds: float, presence: Presence) -> None:
        """Waits until something is given back. Raises `CallerGone` once the caller leaves."""

        def wake() -> None:
            with self._lock:  # so not before `wait` has given the lock away
                freed.notify_all()

        with presence.calling(wake):
            freed.wait(seconds)
        presence.require()

    def require_room(self, caller: str) -> None:
        """Raises `LimitExceeded` where `take` would, and takes nothing."""
        with self._lock:
            refusal = self._refusal(caller, 1)
        if refusal is not None:
            raise LimitExceeded(refusal)

    def is_crowded(self, caller: str, part: float) -> bool:
        """Whether `caller` has taken more than a part of what it may."""
        with self._lock:
            return self._taken[caller] > part * self._most_of_one

    def give_back(self, caller: str, amount: int = 1) -> None:
        """Gives back what was taken."""
        with self._lock:
            self._all -= amount
            self._taken[caller] -= amount
            self._freed.notify_all()
            if caller in self._freed_of:
                self._freed_of[caller].notify_all()
            if not self._taken[caller]:
                del self._taken[caller]
                self._freed_of.pop(caller, None)

    def _condition(self, caller: str, amount: int) -> threading.Condition:
        """What to wait for."""
        if self._all + amount > self._most:
            return self._freed
        return self._freed_of.setdefault(caller, threading.Condition(self._lock))

    @contextmanager
    def held(self, caller: str, *, wait: float = 0.0) -> Iterator[None]:
        """`take`, and `give_back` after the block."""
        self.take(caller, wait=wait)
        try:
            yield
        finally:
            self.give_back(caller)

    def _refusal(self, caller: str, amount: int) -> str | None:
        if self._all + amount > self._most:
            return (
                f"{self.name}: {self._all} {self._what} at this server, which has {self._most}; "
                "try again later"
            )
        if self._taken[caller] + amount > self._most_of_one:
            return (
                f"{self.name}: {self._taken[caller]} {self._what} by one caller, of the "
                f"{self._most_of_one} allowed; wait for answers"
            )
        return None
