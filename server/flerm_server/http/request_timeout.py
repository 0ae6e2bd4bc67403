"""uvicorn's HTTP protocol, with a time limit for the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class RequestHeadTimeoutProtocol(H11Protocol):
    """Closes a connection on which no whole request head comes within `HEAD_SECONDS`.

    The time runs from the connection's start, and again from each answer. uvicorn's own timeout
    runs between requests only, and stops at the first byte of the next one.
    """

    _timer: asyncio.TimerHandle | None = None
    _answered_before: Any = None  # the request that was already answered at the last check

    def connection_made(self, transport: Any) -> None:
        """Starts the timer."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        request = self.cycle  # the last one whose head came, or None
        waiting = request is None or request.response_complete
        if waiting and request is self._answered_before:
            self.transport.close()
            return
        # A request that was answered since the last check: its successor has until the next one.
        if request is not None and waiting:
            self._answered_before = request
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)
