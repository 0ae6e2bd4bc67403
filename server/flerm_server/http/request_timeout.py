"""uvicorn's HTTP protocol, with limits on clients that send or read slowly, or do nothing."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from flerm_server.http.answer_headers import SECURITY_HEADERS
from flerm_server.http.problems import problem
from flerm_server.presence import Presence

HEAD_SECONDS = 20.0
READ_SECONDS = 20.0
MAX_WAITING = 1000
WRITE_BUFFER_BYTES = 32 << 10


class TimeLimitProtocol(H11Protocol):
    """Closes connections whose clients take too long.

    A whole request head has `HEAD_SECONDS`, from the connection's start and again from each answer.
    uvicorn's own timeout runs between requests only, and stops at the first byte of the next one.
    A client that does not read has `READ_SECONDS`, each time the buffer of its answer is full.
    At most `MAX_WAITING` connections are without a request: a further one closes the oldest.
    """

    _waiting: ClassVar[dict[TimeLimitProtocol, None]] = {}  # without a request, oldest first
    _timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _answered_before: Any = None  # the request that was already answered at the last check

    def connection_made(self, transport: Any) -> None:
        """Starts the timer of the head."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers."""
        for timer in (self._timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.pop(self, None)
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.scope["state"]["presence"].end()

    def handle_events(self) -> None:
        """Takes what came. The connection no longer waits once that is a request.

        The request's state has the `presence` of its caller, which ends with the connection.
        """
        super().handle_events()
        if self.cycle is not None:  # whose task has not run yet where the request is new
            self.cycle.scope["state"].setdefault("presence", Presence())
        if self.cycle is not None and not self.cycle.response_complete:
            self._waiting.pop(self, None)

    def on_response_complete(self) -> None:
        """The connection waits for its next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def pause_writing(self) -> None:
        """The buffer is full: the client has time to read."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP as errors are answered elsewhere, and ends the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # another answer is on its way
            self.transport.abort()
            return
        answer = problem(400, f"{msg.rstrip('.')}: the head of the request is no HTTP/1.1")
        headers = [*answer.raw_headers, (b"connection", b"close"), *SECURITY_HEADERS]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _wait(self) -> None:
        self._waiting.pop(self, None)
        self._waiting[self] = None
        if len(self._waiting) > MAX_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()

    def _check(self) -> None:
        request = self.cycle  # the last one whose head came, or None
        waiting = request is None or request.response_complete
        if waiting and request is self._answered_before:
            # Not `close`, which waits until the client has read what is left of the last answer.
            self.transport.abort()
            return
        # A request that was answered since the last check: its successor has until the next one.
        if request is not None and waiting:
            self._answered_before = request
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)
