"""Who sends a request: a token in the Authorization header, or a browser's session in a cookie."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote, urlsplit

from anyio import CapacityLimiter, to_thread
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

THREADS = 8  # for looking up tokens, which slow requests must not hold up
COOKIE = "flerm_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def wants_page(path: str, accept: str) -> bool:
    """Whether a request is a browser's for a page, and not for data.

    accept: the Accept header.
    """
    return "text/html" in accept and not path.startswith("/api/")


def refuse_other_sites(headers: Headers) -> None:
    """Raises `PermissionDenied` unless a page of this registry sends the request.

    Another site can make a browser send a form, and the browser adds the cookie; but it names the
    other site as the Origin.
    """
    origin = headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != headers.get("host", ""):
        raise PermissionDenied(
            f"Origin {origin[:200]!r}: with a session's cookie, or to log in, "
            "only this registry's own pages may send"
        )


class Authenticate:
    """Middleware that finds a request's principal and refuses what that principal may not do.

    A browser without a session is sent to the login page. Sets `state.principal`, and
    `state.recheck_access`: long answers call it again, and it raises once access was revoked.
    """

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, metrics: Metrics) -> None:
        self._app = app
        self._authenticator = authenticator
        self._metrics = metrics
        self._threads = CapacityLimiter(THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, 403 or 303, or passes the request on."""
        needed = path_needs(scope["path"]) if scope["type"] == "http" else None
        if needed is None:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        authenticate = self._authentication(headers, scope["method"])
        try:
            principal = await to_thread.run_sync(authenticate, limiter=self._threads)
            principal.require(needed)
            if scope["path"] in WHOLE_PATHS:
                principal.require_unbound()
        except FlermError as error:
            await self._refuse(error, scope, headers)(scope, receive, send)
            return
        act_as(principal)  # each request is a task with a context of its own
        scope.setdefault("state", {}).update(principal=principal, recheck_access=authenticate)
        await self._app(scope, receive, send)

    def _authentication(self, headers: Headers, method: str) -> Callable[[], Principal]:
        """A function that gives the request's principal, or raises; it asks the database."""
        authorization, cookie = headers.get("authorization", ""), session_of(headers)

        def authenticate() -> Principal:
            if authorization or not cookie:
                return self._authenticator.from_header(authorization)
            if method not in SAFE_METHODS:
                refuse_other_sites(headers)
            return self._authenticator.from_cookie(cookie)

        return authenticate

    def _refuse(self, error: FlermError, scope: Scope, headers: Headers) -> Response:
        if isinstance(error, Unauthenticated | PermissionDenied):
            self._metrics.turned_away.labels("http", str(status_of(error))).inc()
        if isinstance(error, Unauthenticated) and wants_page(
            scope["path"], headers.get("accept", "")
        ):
            return _to_login(scope)
        answer = problem(status_of(error), str(error), kind=type(error).__name__)
        if isinstance(error, Unauthenticated):
            answer.headers["WWW-Authenticate"] = 'Bearer realm="flerm"'
        return answer


def _to_login(scope: Scope) -> Response:
    """The login page, which leads back to the page that was asked for."""
    target = "/login"
    if scope["method"] in SAFE_METHODS:
        query = scope["query_string"].decode("latin-1")
        asked = f"{scope['path']}?{query}" if query else scope["path"]
        target += f"?next={quote(asked, safe='')}"
    return RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})


def session_of(headers: Headers) -> str:
    """The session's cookie; empty: there is none."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
