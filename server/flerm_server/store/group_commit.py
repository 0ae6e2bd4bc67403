"""Group commit: appends of all clients in flight share one transaction."""

from __future__ import annotations

import threading
from collections import deque

from flerm_core.errors import Unreachable
from flerm_server.store.interface import Appended, Batch, Store

MAX_ROWS = 20_000  # of one transaction, so that the first to wait is answered soon


class PendingAppend:
    """A batch on its way into the store."""

    __slots__ = ("answer", "batch")

    def __init__(self, batch: Batch) -> None:
        """Not answered yet."""
        self.batch = batch
        self.answer: Appended | Exception | None = None


class GroupCommit:
    """Appends for many threads through one transaction at a time.

    There is no writer thread: whoever comes while nobody writes, writes, for itself and for all who queued up meanwhile. One
    lone client so pays no hand-over between threads, and sixty-four share a commit.
    """

    def __init__(self, store: Store) -> None:
        """Appends to `store`."""
        self._store = store
        self._waiting: deque[PendingAppend] = deque()
        self._writing = threading.Lock()

    def append(self, batch: Batch) -> Appended:
        """Stores `batch`; returns when it is committed. Raises what the store refused it with."""
        return self.finish(self.submit(batch))

    def submit(self, batch: Batch) -> PendingAppend:
        """Queues `batch` behind what waits. It is stored when somebody finishes it, or another that came later."""
        pending = PendingAppend(batch)
        self._waiting.append(pending)
        return pending

    def finish(self, pending: PendingAppend) -> Appended:
        """Returns when what was submitted is committed. Raises what the store refused it with."""
        if pending.answer is None:
            # Once this thread holds the lock, another has answered it, or it answers everybody itself.
            with self._writing:
                while pending.answer is None:
                    self._write(self._next_group())
        if isinstance(pending.answer, Exception):
            raise pending.answer
        return pending.answer

    def _next_group(self) -> list[PendingAppend]:
        """Takes what waits, in its order, up to MAX_ROWS. Only the holder of the lock takes, so the queue is not empty here."""
        group = [self._waiting.popleft()]
        rows = len(group[0].batch.rows)
        while self._waiting and (rows := rows + len(self._waiting[0].batch.rows)) <= MAX_ROWS:
            group.append(self._waiting.popleft())
        return group

    def _write(self, group: list[PendingAppend]) -> None:
        try:
            answers = self._store.append_many([each.batch for each in group])
        except Exception as error:
            # Trouble of the database is everyone's. Anything else may be the doing of one batch: then each goes alone.
            if len(group) > 1 and not isinstance(error, Unreachable):
                for each in group:
                    self._write([each])
                return
            for each in group:
                each.answer = error
            return
        for each, answer in zip(group, answers, strict=True):
            each.answer = answer
