"""Whether a store can be written now, found out by one trial for all who ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flerm_core.errors import Unreachable
from flerm_server.store.interface import StoreInfo

FRESH_SECONDS = 1.0  # how long an answer stands for others who ask
WAIT_SECONDS = 2.0  # whoever asks is told after this time that the store is not ready


class Readiness:
    """One trial at a time, on a thread of its own.

    Probes that ask while a trial hangs neither hang nor pile up.
    """

    def __init__(self, trial: Callable[[], StoreInfo]) -> None:
        """trial: raises a `FlermError` when the store cannot be written."""
        self._trial = trial
        self._changed = threading.Condition()
        self._answer: StoreInfo | Exception | None = None
        self._answered_at = 0.0
        self._began_at: float | None = None  # None: no trial is going on

    def check(self) -> StoreInfo:
        """The answer of a trial that is at most a second old. Raises what the trial raised.

        Raises `Unreachable` where there is no such answer within `WAIT_SECONDS`, or the system
        gives no thread.
        """
        with self._changed:
            if not self._is_fresh() and self._began_at is None:
                self._begin()
            if not self._changed.wait_for(self._is_fresh, WAIT_SECONDS):
                taken = time.monotonic() - (self._began_at or self._answered_at)
                raise Unreachable(f"the database has not answered a trial for {taken:.0f} s")
            answer = self._answer
        if isinstance(answer, Exception):
            raise answer.with_traceback(None)
        assert answer is not None  # a fresh answer is one of the two
        return answer

    def _begin(self) -> None:
        try:
            threading.Thread(target=self._try, name="readiness", daemon=True).start()
        except RuntimeError as error:
            raise Unreachable(f"the database cannot be tried: {error}") from error
        self._began_at = time.monotonic()

    def _is_fresh(self) -> bool:
        return self._answer is not None and time.monotonic() - self._answered_at <= FRESH_SECONDS

    def _try(self) -> None:
        answer: StoreInfo | Exception
        try:
            answer = self._trial()
        except Exception as error:  # for whoever asked
            answer = error
        with self._changed:
            self._answer, self._answered_at = answer, time.monotonic()
            self._began_at = None
            self._changed.notify_all()
