"""Calls that wait for a connection where the database gives no further one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

Taken = TypeVar("Taken")


class Lending:
    """Lends connections of a pool to the calls of this process.

    A role or a database may be allowed fewer connections than the pool has. A call that is refused
    one stands in a line while others have connections, or try to get one. Whoever is first in the
    line tries again when a connection comes back, and when the one before has left the line. So all
    learn soon that there are connections again, or that there is none.

    Nobody stands in the line for ever: while it has calls, a connection is lent, a call tries to
    get one, or the first of the line is awake.
    """

    def __init__(self) -> None:
        """Nothing is lent."""
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()
        self._lent = 0
        self._returned = 0  # how often one came back
        self._trying = 0

    def take(
        self, connect: Callable[[], Taken], refusals: type[Exception], seconds: float
    ) -> Taken:
        """What `connect` gives; `give_back` is to be called after its use.

        connect: takes a connection out of the pool, or makes one.
        refusals: what `connect` raises where the database gives no connection.
        seconds: how long to wait. After them, or where no other call has a connection or tries to
            get one, the refusal is raised.
        """
        deadline = time.monotonic() + seconds
        refusal: Exception | None = None
        returned = 0
        # Else calls that follow each other closely would pass those that wait.
        place = self._stand_behind_others()
        try:
            while True:
                if place is not None:
                    place.wait(max(deadline - time.monotonic(), 0))
                    place.clear()
                    late = time.monotonic() >= deadline
                    if refusal is not None and (late or self._is_hopeless(returned)):
                        raise refusal
                with self._lock:
                    self._trying += 1
                    returned = self._returned
                try:
                    taken = connect()
                except refusals as error:
                    refusal = error
                    place = self._refused(place, returned)
                    if place is None:
                        raise
                except BaseException:
                    self._tried(lent=0)
                    raise
                else:
                    self._tried(lent=1)
                    return taken
        finally:
            if place is not None:
                with self._lock:
                    self._line.remove(place)
                    self._wake_first()

    def give_back(self) -> None:
        """Says that what `take` gave is in the pool again, or closed."""
        with self._lock:
            self._lent -= 1
            self._returned += 1
            self._wake_first()

    def _stand_behind_others(self) -> threading.Event | None:
        """A place at the end of the line; None where there is no line."""
        with self._lock:
            return self._stand() if self._line else None

    def _refused(self, place: threading.Event | None, returned: int) -> threading.Event | None:
        """The place in the line of a call that was refused; None where there is none to wait for.

        place: the one that the call has.
        returned: how often a connection had come back when the call tried.
        """
        with self._lock:
            self._trying -= 1
            came_back = self._returned != returned
            if place is None and (self._lent or self._trying or came_back):
                place = self._stand()
            if came_back or not (self._lent or self._trying):
                self._wake_first()
            return place

    def _tried(self, *, lent: int) -> None:
        with self._lock:
            self._trying -= 1
            self._lent += lent
            if not lent:
                self._wake_first()

    def _is_hopeless(self, returned: int) -> bool:
        """Whether no other call has a connection or tries to get one, and none came back.

        returned: how often one had come back when the call tried last.
        """
        with self._lock:
            return not (self._lent or self._trying or self._returned != returned)

    def _stand(self) -> threading.Event:
        place = threading.Event()
        self._line.append(place)
        return place

    def _wake_first(self) -> None:
        if self._line:
            self._line[0].set()
