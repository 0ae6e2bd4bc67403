"""Server-sent events, by which the page of a running recording learns of new rows.

Rows may come in through any server on the same database. Each stream therefore asks the database,
once a second, and any server can serve any page.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from prometheus_client import Gauge
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from flerm_core.errors import FlermError
from flerm_core.records.recording import FINAL_STATUSES, Recording
from flerm_server.http.api import examples
from flerm_server.http.api.core_models import number
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.middleware import caller_of
from flerm_server.http.problems import PROBLEM
from flerm_server.logs import public_sentence
from flerm_server.shared_limit import SharedLimit
from flerm_server.store.interface import Store

POLL_SECONDS = 1.0
# A quiet stream carries a comment now and then: proxies keep it open, and a client that is gone is
# noticed.
KEEPALIVE_SECONDS = 15.0
MAX_STREAMS = 256
STREAMS_SHARE = 0.5  # the most that one token may have of them

api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["figures"])


class EventStreams:
    """The open event streams of one server. `close_all` may be called from any thread."""

    def __init__(self, gauge: Gauge) -> None:
        """gauge: shows how many streams are open."""
        self._gauge = gauge
        self._lock = threading.Lock()
        self._open: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._closed = False
        self._limit = SharedLimit(
            "event_streams", MAX_STREAMS, "pages follow recordings", share=STREAMS_SHARE
        )

    def close_all(self) -> None:
        """Ends every open stream, and every stream that is opened from now on."""
        with self._lock:
            self._closed = True
            streams = list(self._open.items())
        for closing, loop in streams:
            loop.call_soon_threadsafe(closing.set)

    def open(self, caller: str) -> asyncio.Event:
        """Counts a new stream of `caller`; the event that is returned ends the stream.

        Raises `LimitExceeded` where `MAX_STREAMS` are open, or the caller's share of them.
        """
        self._limit.take(caller)
        closing = asyncio.Event()
        with self._lock:
            if self._closed:
                closing.set()
            self._open[closing] = asyncio.get_running_loop()
            self._gauge.set(len(self._open))
        return closing

    def close(self, caller: str, closing: asyncio.Event) -> None:
        """Takes a stream that has ended off the count."""
        self._limit.give_back(caller)
        with self._lock:
            self._open.pop(closing, None)
            self._gauge.set(len(self._open))


async def _event_streams(request: Request) -> Any:
    return request.app.state.event_streams


@api.get(
    "/recordings/{recording_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"example": examples.EVENT}}}},
)
async def follow(
    store: StoreDep,
    streams: Annotated[EventStreams, Depends(_event_streams)],
    request: Request,
    recording_id: examples.RecordingId,
) -> StreamingResponse:
    """Sends server-sent events while a recording runs.

    `rows` says that there are new rows, `end` that the recording has ended, `failure` why the
    stream stops early.
    """
    caller = caller_of(request.scope)
    # Counted before the answer begins, so that one too many is refused with a status.
    closing = streams.open(caller)
    try:
        recording = await run_in_threadpool(store.recording, recording_id)
    except BaseException:
        streams.close(caller, closing)
        raise
    return _CountedStream(
        events(store, closing, recording, request.state.recheck_access),
        lambda: streams.close(caller, closing),
        media_type="text/event-stream",
        # The second header keeps nginx from holding events back.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


class _CountedStream(StreamingResponse):
    """An answer that is taken off the count when it ends, also if it never began."""

    def __init__(self, content: AsyncIterator[str], ended: Callable[[], None], **more: Any) -> None:
        super().__init__(content, **more)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def events(
    store: Store,
    closing: asyncio.Event,
    recording: Recording,
    recheck_access: Callable[[], object],
) -> AsyncIterator[str]:
    """`rows` events while the recording runs, the first at once, then an `end` event.

    Each has the recording's status, rows, last_step and final_loss. The stream ends with the
    recording, or when the server stops. A `FlermError` ends it with a `failure` event.
    An interrupted recording is followed too: late rows or a resume may come.

    closing: ends the stream. recheck_access: called before each look at the database; raises a
    `FlermError` once the token or session was revoked.
    """

    def look() -> Recording:
        recheck_access()
        return store.recording(recording.spec.id)

    sent = ""
    silent = 0.0
    while True:
        data = json.dumps(_state(recording))
        if data != sent:
            sent, silent = data, 0.0
            yield f"event: rows\ndata: {data}\n\n"
        elif silent >= KEEPALIVE_SECONDS:
            silent = 0.0
            yield ": keepalive\n\n"
        if recording.status in FINAL_STATUSES:
            yield f"event: end\ndata: {data}\n\n"
            return
        try:
            await asyncio.wait_for(closing.wait(), POLL_SECONDS)
            return
        except TimeoutError:
            silent += POLL_SECONDS
        try:
            recording = await run_in_threadpool(look)
        except FlermError as error:
            # Not "error": browsers give that name to a lost connection.
            yield f"event: failure\ndata: {json.dumps({'detail': public_sentence(error)})}\n\n"
            return


def _state(recording: Recording) -> dict[str, object]:
    return {
        "status": recording.status,
        "rows": recording.rows,
        "last_step": recording.last_step,
        "final_loss": number(recording.final_loss),
    }
