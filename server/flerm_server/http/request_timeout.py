"""uvicorn's HTTP protocol with an end to its patience: a peer that does not finish its request's head is hung up on."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class RequestHeadTimeoutProtocol(H11Protocol):
    """Hangs up when `HEAD_SECONDS` pass without a whole request head, on a new connection or after an answer.

    uvicorn's own timeout runs between requests only, and stops at the first byte of the next one.
    """

    _watch: asyncio.TimerHandle | None = None
    _seen: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begins to watch."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops watching."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle = self.cycle
        if (cycle is None or cycle.response_complete) and cycle is self._seen:
            self.transport.close()
            return
        # One that has been answered since the last look gets as long for its next head.
        self._seen = cycle if cycle is not None and cycle.response_complete else self._seen
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)
