"""ETags: an answer about recordings that have ended does not change, and need not be sent twice."""

from __future__ import annotations

import hashlib

from fastapi import Request, Response

from flerm_core.records.recording import FINAL_STATUSES, Recording
from flerm_server.version import version

# A browser keeps the answer and asks each time whether it still holds; 304 is a few bytes.
REVALIDATE = "private, no-cache"


def etag_of(recordings: list[Recording], *parts: str) -> str | None:
    """The ETag of what is made of `recordings`; None while one of them may still change.

    parts: what else the answer depends on, such as its format. The ETag is weak, because the same
        content may be sent gzipped or not.
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
    # With the version, because another version may draw the same rows differently.
    return f'W/"{hashlib.sha256(repr((version(), content, parts)).encode()).hexdigest()[:32]}"'


def unchanged(request: Request, etag: str | None) -> Response | None:
    """304 where the client has this version of the answer already, else None."""
    if etag is None:
        return None
    known = [each.strip() for each in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers(etag))
    return None


def headers(etag: str | None) -> dict[str, str]:
    """The headers of an answer with this ETag. Browsers may not keep an answer without one."""
    return (
        {"Cache-Control": "no-store"}
        if etag is None
        else {"Cache-Control": REVALIDATE, "ETag": etag}
    )
