"""Group commit: appends of all clients in flight share one transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from flerm_core.errors import FlermError, Unreachable
from flerm_server.store.interface import Appended, Batch

MAX_ROWS = 20_000  # of one transaction, so that the first batch in it is answered soon


class BatchWriter(Protocol):
    """The part of a `Store` that a group commit needs."""

    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        """See `Store.append_many`."""


class _PendingAppend:
    """A batch that waits to be stored, and then what the store answered."""

    __slots__ = ("answer", "batch")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.answer: Appended | Exception | None = None


class GroupCommit:
    """Appends of many threads, one transaction at a time.

    There is no writer thread. A thread that appends while no other thread writes becomes the
    writer, for its own batch and for all that are queued. So a single client pays for no switch
    between threads, and sixty-four clients share a commit.
    """

    def __init__(self, store: BatchWriter) -> None:
        """Appends to `store`."""
        self._store = store
        self._queue: deque[_PendingAppend] = deque()
        self._writing = threading.Lock()

    def append(self, batch: Batch) -> Appended:
        """Stores `batch` and returns when it is committed. Raises the store's refusal."""
        pending = _PendingAppend(batch)
        self._queue.append(pending)
        with self._writing:  # the thread that had the lock before may have stored this batch too
            while pending.answer is None:
                self._write(self._next_group())
        if isinstance(pending.answer, Exception):
            raise pending.answer
        return pending.answer

    def _next_group(self) -> list[_PendingAppend]:
        """Takes batches off the queue, in order, up to `MAX_ROWS`.

        Only the thread that holds the lock calls this. So its own batch, for which it waits, is
        still in the queue.
        """
        group = [self._queue.popleft()]
        rows = len(group[0].batch.rows)
        while self._queue and (rows := rows + len(self._queue[0].batch.rows)) <= MAX_ROWS:
            group.append(self._queue.popleft())
        return group

    def _write(self, group: list[_PendingAppend]) -> None:
        try:
            answers = self._store.append_many([each.batch for each in group])
        except Exception as error:
            # An unreachable database is everyone's error. One batch may cause any other error:
            # each batch is then written alone, so that the others are stored.
            if len(group) > 1 and not isinstance(error, Unreachable):
                for each in group:
                    self._write([each])
                return
            for each in group:
                each.answer = error
            return
        for each, answer in zip(group, answers, strict=True):
            each.answer = answer
