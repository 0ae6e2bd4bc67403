"""Group commit: appends of all clients in flight share one transaction."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future

from flerm_core.errors import FlermError
from flerm_server.store.base import Appended, Batch, Store

MAX_ROWS = 20_000  # of one transaction, so that the first to wait is answered soon


class GroupCommit:
    """Appends for many threads through one transaction at a time.

    There is no writer thread: whoever comes while nobody writes, writes, for itself and for all who queued up meanwhile. One
    lone client so pays no hand-over between threads, and sixty-four share a commit.
    """

    def __init__(self, store: Store) -> None:
        """Appends to `store`."""
        self._store = store
        self._waiting: deque[tuple[Batch, Future[Appended]]] = deque()
        self._writing = threading.Lock()

    def append(self, batch: Batch) -> Appended:
        """Stores `batch`; returns when it is committed. Raises what the store refused it with."""
        answer: Future[Appended] = Future()
        self._waiting.append((batch, answer))
        # Once this thread holds the lock, another has answered it, or it answers everybody itself.
        with self._writing:
            while not answer.done():
                self._write(self._next_group())
        return answer.result()

    def _next_group(self) -> list[tuple[Batch, Future[Appended]]]:
        """Takes what waits, in its order, up to MAX_ROWS. Only the holder of the lock takes, so the queue is not empty here."""
        group = [self._waiting.popleft()]
        rows = len(group[0][0].rows)
        while self._waiting and (rows := rows + len(self._waiting[0][0].rows)) <= MAX_ROWS:
            group.append(self._waiting.popleft())
        return group

    def _write(self, group: list[tuple[Batch, Future[Appended]]]) -> None:
        try:
            answers = self._store.append_many([batch for batch, _ in group])
        except Exception as error:
            # Trouble of the database is everyone's. Anything else may be the doing of one batch: then each goes alone.
            if len(group) == 1 or isinstance(error, FlermError):
                for _, future in group:
                    future.set_exception(error)
                return
            for member in group:
                self._write([member])
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if isinstance(answer, FlermError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
