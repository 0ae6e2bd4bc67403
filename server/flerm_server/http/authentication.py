"""Who asks over HTTP: a token in the Authorization header, or a browser's session in a cookie."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flerm_core.errors import FlermError, PermissionDenied, Unauthenticated
from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.permissions import WHOLE_PATHS, path_needs
from flerm_server.auth.principal import Principal, act_as
from flerm_server.http.problems import problem, status_of
from flerm_server.metrics import Metrics

COOKIE = "flerm_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def wants_page(path: str, accept: str) -> bool:
    """Whether a browser asks, and not for data."""
    return "text/html" in accept and not path.startswith("/api/")


def refuse_other_sites(headers: Headers) -> None:
    """Raises `PermissionDenied` unless a page of this very site sends the request.

    What a browser sends by itself (a cookie, a form) another site can make it send too; but not with this Origin.
    """
    origin = headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != headers.get("host", ""):
        raise PermissionDenied(
            f"Origin {origin[:200]!r}: with a session's cookie, or to log in, only this registry's own pages may send"
        )


class Authenticate:
    """Finds out who asks, refuses who may not, and sends browsers to the login page.

    Sets `state.identity` and `state.readmit`, which long answers call to hear whether they may go on.
    """

    def __init__(self, app: ASGIApp, *, gate: Authenticator, metrics: Metrics) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, 403 or 303, or passes on."""
        needed = path_needs(scope["path"]) if scope["type"] == "http" else None
        if needed is None:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        identify = self._identify(headers, scope["method"])
        try:
            identity = await run_in_threadpool(identify)
            identity.require(needed)
            if scope["path"] in WHOLE_PATHS:
                identity.require_unbound()
        except FlermError as error:
            await self._refuse(error, scope, headers)(scope, receive, send)
            return
        act_as(identity)  # each request is a task with a context of its own
        scope.setdefault("state", {}).update(identity=identity, readmit=identify)
        await self._app(scope, receive, send)

    def _identify(self, headers: Headers, method: str) -> Callable[[], Principal]:
        authorization, cookie = headers.get("authorization", ""), session_of(headers)

        def identify() -> Principal:
            if authorization or not cookie:
                return self._gate.from_header(authorization)
            if method not in SAFE_METHODS:
                refuse_other_sites(headers)
            return self._gate.from_cookie(cookie)

        return identify

    def _refuse(self, error: FlermError, scope: Scope, headers: Headers) -> Response:
        if isinstance(error, Unauthenticated | PermissionDenied):
            scope.setdefault("state", {})["refused"] = True
            self._metrics.turned_away.labels("http", str(status_of(error))).inc()
        if isinstance(error, Unauthenticated) and wants_page(
            scope["path"], headers.get("accept", "")
        ):
            asked = scope["path"] + (
                f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
            )
            target = (
                f"/login?next={quote(asked, safe='')}"
                if scope["method"] in SAFE_METHODS
                else "/login"
            )
            return RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})
        answer = problem(status_of(error), str(error), kind=type(error).__name__)
        if isinstance(error, Unauthenticated):
            answer.headers["WWW-Authenticate"] = 'Bearer realm="flerm"'
        return answer


def session_of(headers: Headers) -> str:
    """The session's cookie; empty for none."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
