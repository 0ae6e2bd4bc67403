"""ETags: what has ended does not change, and need not be sent twice."""

from __future__ import annotations

import hashlib

from fastapi import Request, Response

from flerm_core.records.recording import FINAL_STATUSES, Recording
from flerm_server.version import version

# Kept by the browser, asked about each time: the answer is a 304 of a few bytes.
REVALIDATE = "private, no-cache"


def etag_of(recordings: list[Recording], *parts: str) -> str | None:
    """A weak ETag for what is made of `recordings` in the form that `parts` name; None while one of them may still change.

    Weak, because the same content travels gzipped or not.
    """
    if not recordings or any(each.status not in FINAL_STATUSES for each in recordings):
        return None
    content = [
        (
            each.spec.id,
            each.spec.family,
            each.attempt,
            each.rows,
            each.last_step,
            each.status,
            each.updated_at.isoformat(),
        )
        for each in recordings
    ]
    # The version too: a newer one may draw the same rows otherwise.
    return f'W/"{hashlib.sha256(repr((version(), content, parts)).encode()).hexdigest()[:32]}"'


def unchanged(request: Request, etag: str | None) -> Response | None:
    """304 when the client has just that already, else None."""
    if etag is None:
        return None
    known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers(etag))
    return None


def headers(etag: str | None) -> dict[str, str]:
    """The headers of an answer with that ETag; without one nothing is kept."""
    return (
        {"Cache-Control": REVALIDATE, "ETag": etag}
        if etag is not None
        else {"Cache-Control": "no-store"}
    )
