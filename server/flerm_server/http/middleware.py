"""What every HTTP request passes: a check that it is meant for this host, then counting and logging."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flerm_server.http.problems import problem
from flerm_server.metrics import Metrics
from flerm_server.tracing import span

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 64
MAX_BODY_BYTES = 8 << 20
BODY_SECONDS = 60.0
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Empty: HTTP/1.0, which some health checks speak, has none. Anything beyond a name would end up in addresses on our pages.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?|")
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})

log = structlog.get_logger("flerm.http")


class SameSite:
    """Refuses requests whose Origin is another site's, and on the loopback those whose Host is.

    A page from elsewhere that had its name resolved to 127.0.0.1 could read the registry through its visitor's browser
    otherwise (DNS rebinding). Beyond the loopback the registry's own pages, and the `allowed_origins`, may ask.
    """

    def __init__(
        self, app: ASGIApp, *, local_only: bool, allowed_origins: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._local_only = local_only
        self._allowed = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 or 403, or passes on."""
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
        if self._local_only and _hostname(f"//{host}") not in LOCAL:
            return problem(
                400,
                f"Host {host[:200]!r}: a registry on the loopback answers {', '.join(sorted(LOCAL))} only",
            )
        own = LOCAL if self._local_only else {_hostname(f"//{host}")}
        if origin and origin not in self._allowed and _hostname(origin) not in own:
            return problem(
                403, f"Origin {origin[:200]!r}: this registry answers its own pages only"
            )
        return None


class SafeHeaders:
    """Tells browsers to load nothing from outside and to take nothing for what it is not."""

    # plotly.js sets style attributes; it and swagger-ui draw icons from data addresses.
    POLICY = (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    HEADERS = (
        (b"content-security-policy", POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, with the headers added to the answer."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.HEADERS]
            await send(message)

        await self._app(scope, receive, add if scope["type"] == "http" else send)


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class BoundedBody:
    """Refuses bodies that are too large, or that do not come to an end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 413 or 408, or passes on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
            await _too_large(int(announced))(scope, receive, send)
            return
        size, started = 0, time.monotonic()
        ended = answered = False

        async def bounded() -> Message:
            nonlocal size, ended
            if ended:
                return await receive()  # tells of the client's leaving, whenever that is
            try:
                message = await asyncio.wait_for(
                    receive(), max(0.0, started + BODY_SECONDS - time.monotonic())
                )
            except TimeoutError:
                raise _Unfit(
                    problem(
                        408,
                        f"body_seconds: the request's body did not come within {BODY_SECONDS:.0f} s",
                    )
                ) from None
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise _Unfit(_too_large(size))
            ended = not message.get("more_body", False)
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, bounded, noted)
        except _Unfit as error:
            if not answered:
                await error.answer(scope, receive, send)


class _Unfit(BaseException):
    """A body that will not be read on. Not an Exception: no handler below is to make something of it."""

    def __init__(self, answer: Response) -> None:
        self.answer = answer


def _too_large(size: int) -> Response:
    return problem(
        413, f"max_body_bytes: a body of {size} bytes or more; at most {MAX_BODY_BYTES} are allowed"
    )


class Observe:
    """Gives each request an id, counts and times it by its route, and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, and takes note of the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        given = headers.get(REQUEST_ID, "")[:MAX_REQUEST_ID]
        request_id = given if given.isprintable() and given else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (REQUEST_ID.encode(), request_id.encode("latin-1")),
                ]
            await send(message)

        self._metrics.in_flight.labels("http").inc()
        try:
            with span(method, headers, request_id=request_id):
                await self._app(scope, receive, watch)
        finally:
            seconds = time.perf_counter() - started
            # The route's template, not the path, and no method's name of a caller's making: labels without end otherwise.
            route = f"{method} {getattr(scope.get('route'), 'path', 'other')}"
            self._metrics.in_flight.labels("http").dec()
            self._metrics.calls.labels("http", route, str(status)).inc()
            self._metrics.seconds.labels("http", route).observe(seconds)
            identity = state.get("identity")
            log.debug(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(seconds, 6),
                request_id=request_id,
                token=identity.token_id if identity else "",
            )
