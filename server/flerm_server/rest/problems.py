"""Errors as RFC 9457 problem details."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flerm_core import errors

MEDIA_TYPE = "application/problem+json"

# Most specific first, as in flerm_proto.status.
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

log = structlog.get_logger("flerm.http")


class NotAcceptable(errors.InvalidInput):
    """None of the media types that the client accepts is there."""


def status_of(error: errors.FlermError) -> int:
    """The HTTP status under which `error` travels."""
    if isinstance(error, NotAcceptable):
        return 406
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def problem(status: int, detail: str, **more: Any) -> JSONResponse:
    """A problem document: what went wrong in one sentence, and `more` members."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return JSONResponse(content, status, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem document."""

    @app.exception_handler(errors.FlermError)
    async def ours(request: Request, error: errors.FlermError) -> JSONResponse:
        return problem(status_of(error), str(error), kind=type(error).__name__)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = [
            {"field": ".".join(map(str, each["loc"])), "value": repr(each.get("input"))[:200], "problem": each["msg"]}
            for each in error.errors()
        ]
        first = found[0]
        detail = f"{first['field']} {first['value']}: {first['problem']}"
        return problem(422, detail, kind="InvalidInput", errors=found)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        request_id = uuid.uuid4().hex
        log.error("bug", method=request.method, path=request.url.path, request_id=request_id, exc_info=error)
        return problem(500, f"internal error of the registry; its log has it as request {request_id}", request_id=request_id)
