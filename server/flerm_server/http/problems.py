"""Errors as RFC 9457 problem details."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flerm_core import errors
from flerm_server.logs import public_sentence

MEDIA_TYPE = "application/problem+json"

# The most specific classes come first, as in flerm_proto.status_codes.
_STATUSES: tuple[tuple[type[errors.FlermError], int], ...] = (
    (errors.AlreadyExists, 409),
    (errors.Ambiguous, 409),
    (errors.Unauthenticated, 401),
    (errors.PermissionDenied, 403),
    (errors.LimitExceeded, 429),
    (errors.Refused, 409),
    (errors.InvalidInput, 422),
    (errors.NotFound, 404),
    (errors.Unreachable, 503),
)

# What every route may answer instead, as the OpenAPI document says it.
PROBLEM: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What is wrong, in a sentence (RFC 9457)", "content": {MEDIA_TYPE: {}}},
    "5XX": {"description": "What failed, in a sentence (RFC 9457)", "content": {MEDIA_TYPE: {}}},
}

log = structlog.get_logger("flerm.http")


class NotAcceptable(errors.InvalidInput):
    """The client accepts none of the media types that there are."""


def status_of(error: errors.FlermError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, NotAcceptable):
        return 406
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def problem(status: int, detail: str, **more: Any) -> JSONResponse:
    """A problem document.

    detail: what went wrong, in one sentence. more: further members of the document.
    """
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **more,
    }
    return JSONResponse(content, status, media_type=MEDIA_TYPE)


class ErrorPages(Protocol):
    """Renders errors as pages."""

    def wanted(self, request: Request) -> bool:
        """Whether the request is a browser's for a page."""

    def __call__(self, request: Request, status: int, sentence: str) -> Response:
        """The page."""


def install(app: FastAPI, pages: ErrorPages) -> None:
    """Answers each error of `app` with a problem document, or with a page if one was asked for."""

    def answer(request: Request, status: int, detail: str, **more: Any) -> Response:
        return (
            pages(request, status, detail)
            if pages.wanted(request)
            else problem(status, detail, **more)
        )

    @app.exception_handler(errors.FlermError)
    async def flerm_error(request: Request, error: errors.FlermError) -> Response:
        return answer(request, status_of(error), public_sentence(error), kind=type(error).__name__)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = [
            {
                "field": ".".join(map(str, each["loc"])),
                "value": repr(each.get("input"))[:200],
                "problem": each["msg"],
            }
            for each in error.errors()
        ]
        first = found[0]
        detail = f"{first['field']} {first['value']}: {first['problem']}"
        return answer(request, 422, detail, kind="InvalidInput", errors=found)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        given = answer(
            request, error.status_code, f"{request.method} {request.url.path}: {error.detail}"
        )
        given.headers.update(error.headers or {})
        return given

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        request_id = request.state.request_id
        log.error(
            "bug",
            method=request.method,
            path=request.url.path,
            request_id=request_id,
            exc_info=error,
        )
        sentence = f"internal error of the registry; its log has it as request {request_id}"
        given = answer(request, 500, sentence, request_id=request_id)
        given.headers["X-Request-ID"] = request_id  # which `Observe` adds to what did not fail
        return given
