"""What every HTTP request passes: checks of its Host, Origin and size, counting and logging."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flerm_server.auth.permissions import path_needs
from flerm_server.http.problems import problem
from flerm_server.metrics import Metrics
from flerm_server.presence import CallerGone
from flerm_server.tracing import span

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 64  # characters
MAX_BODY_BYTES = 8 << 20
MAX_OPEN_BODY_BYTES = 64 << 10  # where no token is needed: to log in
REQUESTS_PER_TOKEN = 6  # more would only take turns at Python's interpreter lock
WAITING_PER_TOKEN = 200
BODY_SECONDS = 60.0
PIECE_BYTES = 32 << 10
CALLER_GONE = 499  # as nginx logs it; metrics and the log alone have it
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
# A name or an address: anything more would get into the addresses that our pages show. It may be
# empty, for HTTP/1.0, which some health checks speak, has no Host.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?|")

log = structlog.get_logger("flerm.http")


class RefuseOtherSites:
    """Refuses a request whose Origin is another site's, and, on the loopback, one for another host.

    A page of another site could otherwise read the registry through its visitor's browser, by
    having its own name resolved to 127.0.0.1 (DNS rebinding). starlette's `TrustedHostMiddleware`
    checks hosts too, but does not know IPv6 addresses and answers without a reason.
    """

    def __init__(
        self, app: ASGIApp, *, local_only: bool, allowed_origins: Sequence[str] = ()
    ) -> None:
        """allowed_origins: other sites whose pages may ask."""
        self._app = app
        self._local_only = local_only
        self._allowed = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 or 403, or passes the request on."""
        if scope["type"] == "http":
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if not _HOST.fullmatch(host):
            return problem(
                400, f"Host {host[:200]!r}: a name or an address is allowed, with or without a port"
            )
        if self._local_only and host and _hostname(f"//{host}") not in LOCAL_HOSTS:
            return problem(
                400,
                f"Host {host[:200]!r}: a registry on the loopback answers "
                f"{', '.join(sorted(LOCAL_HOSTS))} only",
            )
        own = LOCAL_HOSTS if self._local_only else {_hostname(f"//{host}")}
        if origin and origin not in self._allowed and _hostname(origin) not in own:
            return problem(
                403, f"Origin {origin[:200]!r}: this registry answers its own pages only"
            )
        return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class RefuseTwoLengths:
    """Refuses a request that gives the length of its body in two ways, and ends the connection.

    A proxy may take the other length than we do, and what it takes for the rest of the body would
    be answered here as a request of its own (RFC 9112, section 6.3).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400, or passes the request on."""
        if scope["type"] == "http" and {b"content-length", b"transfer-encoding"} <= {
            name for name, _ in scope["headers"]
        }:
            refusal = problem(
                400, "Content-Length and Transfer-Encoding: only one of the two is allowed"
            )
            refusal.headers["Connection"] = "close"
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class SendInPieces:
    """Hands long answers to the server piece by piece, each once the client has read what was
    before.

    The server would otherwise copy the whole answer for each client that does not read it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and cuts its answer."""

        async def cut(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= PIECE_BYTES:
                await send(message)
                return
            for at in range(0, len(body), PIECE_BYTES):
                last = at + PIECE_BYTES >= len(body)
                more = message.get("more_body", False) if last else True
                await send({**message, "body": body[at : at + PIECE_BYTES], "more_body": more})

        await self._app(scope, receive, cut if scope["type"] == "http" else send)


class LimitBody:
    """Refuses a body that is too large, or that does not end in time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 413 or 408, or passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = MAX_BODY_BYTES if path_needs(scope["path"]) else MAX_OPEN_BODY_BYTES
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            await _too_large(int(announced), most)(scope, receive, send)
            return
        body = _LimitedBody(receive, most)
        answered = False

        async def note_answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, body.receive, note_answer)
        except _BodyRefused as error:
            if not answered:
                await error.answer(scope, receive, send)


class _LimitedBody:
    """`receive` of one request, until its body exceeds a limit."""

    def __init__(self, receive: Receive, most: int) -> None:
        """most: how many bytes the body may have."""
        self._receive = receive
        self._most = most
        self._deadline = time.monotonic() + BODY_SECONDS
        self._size = 0
        self._ended = False

    async def receive(self) -> Message:
        """The next part of the body. Raises `_BodyRefused`."""
        if self._ended:  # all that may still come is the client's leaving, at any time
            return await self._receive()
        try:
            seconds = max(0.0, self._deadline - time.monotonic())
            message = await asyncio.wait_for(self._receive(), seconds)
        except TimeoutError:
            sentence = f"body_seconds: the request's body did not come within {BODY_SECONDS:.0f} s"
            raise _BodyRefused(problem(408, sentence)) from None
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _BodyRefused(_too_large(self._size, self._most))
        self._ended = not message.get("more_body", False)
        return message


class _BodyRefused(BaseException):
    """Raised where the rest of a request's body will not be read.

    It is no `Exception`, so that no handler below `LimitBody` catches it and answers by itself.
    """

    def __init__(self, answer: Response) -> None:
        self.answer = answer


def _too_large(size: int, most: int) -> Response:
    return problem(
        413, f"max_body_bytes: a body of {size} bytes or more; at most {most} are allowed"
    )


class ShareThreads:
    """Answers at most `REQUESTS_PER_TOKEN` requests of one token at once; its others wait.

    One token can so not take the threads that all need. Requests that follow a recording take no
    thread for long, and `EventStreams` counts them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._in_flight: Counter[str] = Counter()  # those that wait included
        self._slots: dict[str, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 429, or passes the request on once there is a thread for it."""
        caller = caller_of(scope)
        if not caller or scope["path"].endswith("/events"):
            await self._app(scope, receive, send)
            return
        if self._in_flight[caller] >= REQUESTS_PER_TOKEN + WAITING_PER_TOKEN:
            sentence = (
                f"requests_per_token: {self._in_flight[caller]} requests of one caller are in "
                "flight, the most that may be; wait for answers"
            )
            await problem(429, sentence)(scope, receive, send)
            return
        slots = self._slots.setdefault(caller, asyncio.Semaphore(REQUESTS_PER_TOKEN))
        self._in_flight[caller] += 1
        try:
            async with slots:
                await self._app(scope, receive, send)
        finally:
            self._in_flight[caller] -= 1
            if not self._in_flight[caller]:
                del self._in_flight[caller], self._slots[caller]


def caller_of(scope: Scope) -> str:
    """Whose share of the limits a request takes: its token's id, else the client's address.

    Empty for a request that nobody authenticated.
    """
    principal = scope.get("state", {}).get("principal")
    if principal is None:
        return ""
    return principal.token_id or (scope.get("client") or ("unknown",))[0]


class Observe:
    """Gives each request an id, counts and times it by its route, and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and observes the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()
        headers = Headers(scope=scope)
        # A method that a caller invents must make no metric of its own.
        method = scope["method"] if scope["method"] in METHODS else "other"
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = (REQUEST_ID.encode(), request_id.encode("latin-1"))
                message["headers"] = [*message.get("headers", ()), added]
            await send(message)

        self._metrics.in_flight.labels("http").inc()
        try:
            with span(method, headers, request_id=request_id):
                await self._app(scope, receive, observe)
        except CallerGone:
            status = CALLER_GONE
        finally:
            self._record(scope, method, status, time.perf_counter() - started)

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        # By the route's template, not its path: the paths, and so the labels, are without number.
        route = f"{method} {getattr(scope.get('route'), 'path', 'other')}"
        self._metrics.in_flight.labels("http").dec()
        self._metrics.calls.labels("http", route, str(status)).inc()
        self._metrics.seconds.labels("http", route).observe(seconds)
        principal = scope["state"].get("principal")
        log.debug(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 6),
            request_id=scope["state"]["request_id"],
            token=principal.token_id if principal else "",
        )


def _request_id(headers: Headers) -> str:
    """The id that the client gave, else a new one."""
    given = headers.get(REQUEST_ID, "")[:MAX_REQUEST_ID]
    return given if given and given.isprintable() else uuid.uuid4().hex
