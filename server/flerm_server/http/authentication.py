"""Who sends a request: a token in the Authorization header, or a browser's session in a cookie."""

from __future__ import annotations

import ipaddress
import socket
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
from flerm_server.http.public_site import PublicSite
from flerm_server.logs import public_sentence
from flerm_server.metrics import Metrics
from flerm_server.presence import ALWAYS, work_for

THREADS = 8  # for looking up tokens, which slow requests must not hold up
COOKIE = "flerm_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def wants_page(path: str, accept: str) -> bool:
    """Whether a request is a browser's for a page, and not for data.

    accept: the Accept header.
    """
    return "text/html" in accept and not path.startswith("/api/")


def refuse_other_sites(scope: Scope) -> None:
    """Raises `PermissionDenied` unless a page of this registry sends the request, by the same
    scheme.

    Another site can make a browser send a form, and the browser adds the cookie; but it names the
    other site as the Origin.
    """
    headers = Headers(scope=scope)
    origin = headers.get("origin", "")
    if origin != f"{scope['scheme']}://{headers.get('host', '')}":
        raise PermissionDenied(
            f"Origin {origin[:200]!r}: with a session's cookie, or to log in, "
            "only this registry's own pages may send"
        )


class Authenticate:
    """Middleware that finds a request's principal and refuses what that principal may not do.

    A browser without a session is sent to the login page. Sets `state.principal`, and
    `state.recheck_access`: long answers call it again, and it raises once access was revoked.
    """

    def __init__(
        self, app: ASGIApp, *, authenticator: Authenticator, metrics: Metrics, site: PublicSite
    ) -> None:
        self._app = app
        self._site = site
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
        authenticate = self._authentication(headers, scope)
        try:
            principal = await to_thread.run_sync(authenticate, limiter=self._threads)
            if not principal.token_id:
                refuse_rebound_names(headers)
            principal.require(needed)
            if scope["path"] in WHOLE_PATHS:
                principal.require_unbound()
        except FlermError as error:
            await self._refuse(error, scope, headers)(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state.update(principal=principal, recheck_access=authenticate)
        # Each request is a task with a context of its own.
        act_as(principal)
        work_for(state.get("presence", ALWAYS))
        await self._app(scope, receive, send)

    def _authentication(self, headers: Headers, scope: Scope) -> Callable[[], Principal]:
        """A function that gives the request's principal, or raises; it asks the database."""
        authorization, cookie = headers.get("authorization", ""), session_of(headers)

        def authenticate() -> Principal:
            if authorization or not cookie:
                return self._authenticator.from_header(authorization)
            if scope["method"] not in SAFE_METHODS:
                refuse_other_sites(scope)
            return self._authenticator.from_cookie(cookie)

        return authenticate

    def _refuse(self, error: FlermError, scope: Scope, headers: Headers) -> Response:
        if isinstance(error, Unauthenticated | PermissionDenied):
            self._metrics.turned_away.labels("http", str(status_of(error))).inc()
        if isinstance(error, Unauthenticated) and wants_page(
            scope["path"], headers.get("accept", "")
        ):
            return self._to_login(scope)
        answer = problem(status_of(error), public_sentence(error), kind=type(error).__name__)
        if isinstance(error, Unauthenticated):
            answer.headers["WWW-Authenticate"] = 'Bearer realm="flerm"'
        return answer

    def _to_login(self, scope: Scope) -> Response:
        """The login page, which leads back to the page that was asked for."""
        target = self._site.url("/login")
        if scope["method"] in SAFE_METHODS:
            query = scope["query_string"].decode("latin-1")
            asked = f"{scope['path']}?{query}" if query else scope["path"]
            target += f"?next={quote(asked, safe='')}"
        return RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})


def refuse_rebound_names(headers: Headers) -> None:
    """Raises `PermissionDenied` for a Host that may be another site's name for this server.

    A page of another site could otherwise read a registry without tokens through its visitor's
    browser (DNS rebinding). Addresses, names without a dot and this host's own name are answered.
    """
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if "." not in host or host in (socket.gethostname().lower(), "localhost"):
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise PermissionDenied(
            f"Host {host[:200]!r}: a registry without tokens answers to addresses and to names "
            "without a dot only, because another site may have a name for this address; ask by an "
            "address, or create a token"
        ) from None


def session_of(headers: Headers) -> str:
    """The session's cookie; empty: there is none."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
