"""Logging in with a token, and out again."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import Unauthenticated
from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.credentials import SESSION, SESSION_SECONDS, Secret
from flerm_server.auth.principal import Scope
from flerm_server.http.authentication import COOKIE, refuse_other_sites, session_of
from flerm_server.http.web.templating import Pages

MAX_FORM = 8192


def router(gate: Authenticator, pages: Pages, *, secure: bool) -> APIRouter:
    """/login and /logout. `secure`: browsers reach the registry by https, and must not show the cookie elsewhere."""
    web = APIRouter(include_in_schema=False)

    @web.get("/login")
    def form(request: Request, next: str = "/") -> Response:
        if not gate.tokens_required:
            return RedirectResponse(local(next), 303)
        return pages.page("login.html", request, next=local(next), trouble="")

    @web.post("/login")
    async def log_in(request: Request) -> Response:
        refuse_other_sites(request.headers)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_FORM:
                raise Unauthenticated(
                    f"the form has more than {MAX_FORM} bytes, which no token has"
                )
        fields = parse_qs(body.decode("utf-8", "replace"))
        target = local(fields.get("next", ["/"])[0])
        return await run_in_threadpool(enter, request, fields.get("token", [""])[0].strip(), target)

    def enter(request: Request, token: str, target: str) -> Response:
        try:
            identity = gate.from_header(f"Bearer {token}")
            identity.require(Scope.READ)
        except Unauthenticated as error:
            return pages.page("login.html", request, status=401, next=target, trouble=str(error))
        answer = RedirectResponse(target, 303)
        if identity.token_id:
            session = gate.tokens.open_session(identity.token_id)
            # Lax: the address of a page that a colleague sends opens, a form of another site is not sent with it.
            answer.set_cookie(
                COOKIE,
                session.text,
                max_age=SESSION_SECONDS,
                httponly=True,
                secure=secure,
                samesite="lax",
                path="/",
            )
        return answer

    @web.post("/logout")
    def log_out(request: Request) -> Response:
        refuse_other_sites(request.headers)
        with suppress(Unauthenticated):  # a cookie that is no session has nothing to close
            gate.tokens.close_session(Secret.parse(SESSION, session_of(request.headers)))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", secure=secure, httponly=True, samesite="lax")
        return answer

    return web


def local(target: str) -> str:
    """`target` when it is a path of this site, else the first page: a login must not lead elsewhere."""
    inside = (
        target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    )
    return target if inside else "/"
