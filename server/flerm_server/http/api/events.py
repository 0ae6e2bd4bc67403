"""Server-sent events: a page that watches a running recording hears of new rows.

Rows may come in by any server on the same database, so each stream asks the database, once a second; nothing is passed on in
memory, and any replica serves any page.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable

from prometheus_client import Gauge
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import FlermError, LimitExceeded
from flerm_core.records.recording import FINAL_STATUSES, Recording
from flerm_server.http.api.schemas import number
from flerm_server.store.interface import Store

POLL_SECONDS = 1.0
BEAT_SECONDS = (
    15.0  # a comment now and then, so that proxies keep a quiet stream and a dead one is noticed
)
MAX_STREAMS = 256


class EventStreams:
    """The open event streams of one server, which `close` ends at once. `close` may be called from any thread."""

    def __init__(self, gauge: Gauge) -> None:
        """Shows on `gauge` how many there are."""
        self._gauge = gauge
        self._lock = threading.Lock()
        self._open: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._closed = False

    def close(self) -> None:
        """Ends every stream, and every one that is opened from now on."""
        with self._lock:
            self._closed = True
            waiting = list(self._open.items())
        for event, loop in waiting:
            loop.call_soon_threadsafe(event.set)

    def enter(self) -> asyncio.Event:
        """The event that ends a new stream. Raises `LimitExceeded` beyond 256."""
        event = asyncio.Event()
        with self._lock:
            if len(self._open) >= MAX_STREAMS:
                raise LimitExceeded(
                    f"event_streams: {MAX_STREAMS} pages follow recordings at once already; reload to see what is new"
                )
            if self._closed:
                event.set()
            self._open[event] = asyncio.get_running_loop()
            self._gauge.set(len(self._open))
        return event

    def leave(self, event: asyncio.Event) -> None:
        """The stream is over."""
        with self._lock:
            self._open.pop(event, None)
            self._gauge.set(len(self._open))


async def events(
    store: Store, streams: EventStreams, recording: Recording, readmit: Callable[[], object]
) -> AsyncIterator[str]:
    """`rows` events while the recording runs, the first at once, then an `end` event.

    Their data: status, rows, last_step, final_loss. Ends when the recording did or the server stops. An error of the
    registry's is a `trouble` event, and the last; so is a refusal by `readmit`, which is asked each time: a token may have been
    revoked. Interrupted recordings are followed: late rows and a resume may still come.
    """
    closing = streams.enter()
    try:
        seen = ""
        silent = 0.0
        while True:
            data = json.dumps(_state(recording))
            if data != seen:
                seen, silent = data, 0.0
                yield f"event: rows\ndata: {data}\n\n"
            elif silent >= BEAT_SECONDS:
                silent = 0.0
                yield ": still here\n\n"
            if recording.status in FINAL_STATUSES:
                yield f"event: end\ndata: {data}\n\n"
                return
            try:
                await asyncio.wait_for(closing.wait(), POLL_SECONDS)
                return
            except TimeoutError:
                silent += POLL_SECONDS
            try:
                await run_in_threadpool(readmit)
                recording = await run_in_threadpool(store.recording, recording.spec.id)
            except FlermError as error:
                yield f"event: trouble\ndata: {json.dumps({'detail': str(error)})}\n\n"
                return
    finally:
        streams.leave(closing)


def _state(recording: Recording) -> dict[str, object]:
    return {
        "status": recording.status,
        "rows": recording.rows,
        "last_step": recording.last_step,
        "final_loss": number(recording.final_loss),
    }
