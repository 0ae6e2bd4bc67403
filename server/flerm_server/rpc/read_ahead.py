"""Reading a stream of requests ahead of their answers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Request = TypeVar("Request")
Taken = TypeVar("Taken")

MOST = 256  # requests that wait for their answers
MOST_BYTES = 16 << 20


class ReadAhead(Generic[Request, Taken]):
    """Takes each request as it arrives, on a thread of its own, while earlier ones are still being answered.

    Requests that arrived together can so share a commit. At most `MOST` requests of `MOST_BYTES` wait; then the stream's own
    flow control holds the client back. The thread ends with the stream: when the call ends, gRPC ends its requests.
    """

    def __init__(
        self,
        requests: Iterator[Request],
        take: Callable[[Request], Taken],
        size: Callable[[Request], int],
    ) -> None:
        """`take` is called with each request, in their order, and must not wait; `size`: of a request, in bytes."""
        self._requests, self._take, self._size = requests, take, size
        self._taken: deque[tuple[Taken, int]] = deque()
        self._bytes = 0
        self._ended = self._left = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Taken]:
        """What `take` made of the requests. Raises what reading them raised, after all that came before it."""
        threading.Thread(target=self._read, name="read-ahead", daemon=True).start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._taken or self._ended)
                    if not self._taken:
                        break
                    taken, size = self._taken.popleft()
                    self._bytes -= size
                    self._changed.notify()
                yield taken
        finally:
            with self._changed:
                self._left = True
                self._changed.notify()
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            for request in self._requests:
                size = self._size(request)
                taken = self._take(request)
                with self._changed:
                    self._taken.append((taken, size))
                    self._bytes += size
                    self._changed.notify()
                    self._changed.wait_for(self._room)
                    if self._left:
                        break
        except Exception as error:  # handed to who iterates
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _room(self) -> bool:
        return self._left or (len(self._taken) < MOST and self._bytes < MOST_BYTES)
