"""The login page: a token is exchanged for a session, which a cookie holds."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import PermissionDenied, Unauthenticated
from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.credentials import SESSION, SESSION_SECONDS, Secret
from flerm_server.auth.principal import Scope
from flerm_server.http.authentication import COOKIE, refuse_other_sites, session_of
from flerm_server.http.dependencies import AuthenticatorDep
from flerm_server.http.middleware import LOCAL_HOSTS
from flerm_server.http.public_site import PublicSite, is_local
from flerm_server.http.web.templating import PagesDep

MAX_FORM = 8192  # bytes
OPEN_LOGIN = "this page came without TLS, so others could read a token on its way; use https://"

web = APIRouter(include_in_schema=False)


async def _site(request: Request) -> Any:
    return request.app.state.site


SiteDep = Annotated[PublicSite, Depends(_site)]
"""How browsers reach the registry."""


@web.get("/login")
def form(
    authenticator: AuthenticatorDep,
    pages: PagesDep,
    site: SiteDep,
    request: Request,
    next: str = "/",
) -> Response:
    """The login page.

    next: the page to show after it.
    """
    if not authenticator.tokens_required:
        return RedirectResponse(site.url(local(next)), 303)
    error = "" if _private(request) else OPEN_LOGIN
    return pages.page("login.html", request, next=local(next), error=error)


@web.post("/login")
async def log_in(
    authenticator: AuthenticatorDep, pages: PagesDep, site: SiteDep, request: Request
) -> Response:
    """Opens a session for the token in the form, and sets its cookie."""
    refuse_other_sites(request.scope)
    if not (_private(request) or site.open_login):
        raise PermissionDenied(f"login: {OPEN_LOGIN}")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM:
            raise Unauthenticated(f"the form has more than {MAX_FORM} bytes, which no token has")
    fields = parse_qs(body.decode("utf-8", "replace"))
    target = local(fields.get("next", ["/"])[0])
    token = fields.get("token", [""])[0].strip()
    try:
        session = await run_in_threadpool(_open_session, authenticator, token)
    except Unauthenticated as error:
        return pages.page("login.html", request, status=401, next=target, error=str(error))
    answer = RedirectResponse(site.url(target), 303)
    if session is not None:
        # Lax: an address that a colleague sends opens with the cookie, but the browser does not
        # add it to a form of another site.
        answer.set_cookie(
            COOKIE,
            session.text,
            max_age=SESSION_SECONDS,
            httponly=True,
            secure=request.url.scheme == "https",
            samesite="lax",
            path=site.url("/"),
        )
    return answer


@web.post("/logout")
def log_out(authenticator: AuthenticatorDep, site: SiteDep, request: Request) -> Response:
    """Ends the session."""
    refuse_other_sites(request.scope)
    with suppress(Unauthenticated):  # a cookie that is no session has nothing to close
        authenticator.tokens.close_session(Secret.parse(SESSION, session_of(request.headers)))
    answer = RedirectResponse(site.url("/login"), 303)
    secure = request.url.scheme == "https"
    answer.delete_cookie(COOKIE, path=site.url("/"), secure=secure, httponly=True, samesite="lax")
    return answer


def _private(request: Request) -> bool:
    """Whether nobody on the way can read what the browser sends."""
    return request.url.scheme == "https" or request.url.hostname in LOCAL_HOSTS


def local(target: str) -> str:
    """`target` where it is a path of this site, else the first page.

    A login must not lead to another site.
    """
    return target if is_local(target) else "/"


def _open_session(authenticator: Authenticator, token: str) -> Secret | None:
    """A new session of `token`; None where the registry has no tokens.

    Raises `Unauthenticated`, and `PermissionDenied` for a token that may not read.
    """
    principal = authenticator.from_header(f"Bearer {token}")
    principal.require(Scope.READ)
    return authenticator.tokens.open_session(principal.token_id) if principal.token_id else None
