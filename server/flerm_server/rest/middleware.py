"""What every HTTP request passes: a check that it is meant for this host, then counting and logging."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flerm_server.metrics import Metrics
from flerm_server.rest.problems import problem

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})

log = structlog.get_logger("flerm.http")


class LocalOnly:
    """Refuses requests whose Host or Origin is another host's.

    A page from elsewhere that had its name resolved to 127.0.0.1 could read the registry through its visitor's browser
    otherwise (DNS rebinding).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 or 403, or passes on."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin", "")
            if _hostname(f"//{host}") not in LOCAL:
                await problem(400, f"Host {host[:200]!r}: a registry on the loopback answers {', '.join(sorted(LOCAL))} only")(
                    scope, receive, send
                )
                return
            if origin and _hostname(origin) not in LOCAL:
                await problem(403, f"Origin {origin[:200]!r}: a registry on the loopback answers its own pages only")(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Observe:
    """Counts and times each request by its route, and logs it."""

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

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.in_flight.labels("http").inc()
        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = time.perf_counter() - started
            # The route's template, not the path: names from outside would make labels without end.
            route = f"{scope['method']} {getattr(scope.get('route'), 'path', 'other')}"
            self._metrics.in_flight.labels("http").dec()
            self._metrics.calls.labels("http", route, str(status)).inc()
            self._metrics.seconds.labels("http", route).observe(seconds)
            log.debug("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 6))
