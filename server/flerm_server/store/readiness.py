"""Whether a store can be written now, found out by one trial for all who ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flerm_core.errors import FlermError, Unreachable
from flerm_server.store.interface import StoreInfo

FRESH_SECONDS = 1.0  # how long an answer stands for others who ask
WAIT_SECONDS = 1.0  # a trial that takes longer tells those who wait that the store is not ready


class Readiness:
    """One trial at a time. Probes that ask while a trial hangs neither hang nor pile up."""

    def __init__(self, trial: Callable[[], StoreInfo]) -> None:
        """trial: raises a `FlermError` when the store cannot be written."""
        self._trial = trial
        self._trying = threading.Lock()
        self._answer: StoreInfo | FlermError | None = None
        self._answered_at = 0.0
        self._began_at = 0.0

    def check(self) -> StoreInfo:
        """The answer of a trial that is at most a second old. Raises what the trial raised."""
        if not self._trying.acquire(timeout=WAIT_SECONDS):
            taken = time.monotonic() - self._began_at
            raise Unreachable(f"the database has not answered a trial for {taken:.0f} s")
        try:
            self._began_at = time.monotonic()
            if self._answer is None or self._began_at - self._answered_at > FRESH_SECONDS:
                try:
                    self._answer = self._trial()
                except FlermError as error:
                    self._answer = error
                self._answered_at = time.monotonic()
            answer = self._answer
        finally:
            self._trying.release()
        if isinstance(answer, FlermError):
            raise answer.with_traceback(None)
        return answer
