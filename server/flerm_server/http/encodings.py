"""Whether a client takes gzipped answers, as its Accept-Encoding says."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

NAME = b"accept-encoding"
# One encoding of the header and its quality: "gzip;q=0.5".
_ENCODING = re.compile(r"([^\s;,]+)(?:\s*;\s*q\s*=\s*([0-9.]+))?[^,]*")


def takes_gzip(accept: str) -> bool:
    """Whether gzip is allowed, and liked at least as much as no encoding (RFC 9110, 12.5.3).

    accept: the Accept-Encoding header; empty: the client names none, and gets none.
    """
    found: list[tuple[str, str]] = _ENCODING.findall(accept.lower())
    liked = {name: _quality(given) for name, given in found}
    others = liked.get("*", 0.0)
    gzip = liked.get("gzip", liked.get("x-gzip", others))
    return gzip > 0 and gzip >= liked.get("identity", 0.0)


def _quality(given: str) -> float:
    try:
        return float(given or 1)
    except ValueError:  # such as "1.1.1"
        return 0.0


class ReadEncodings:
    """Replaces Accept-Encoding by `gzip` or `identity`.

    starlette's `GZipMiddleware`, and whoever gives compressed answers itself, look for the word
    `gzip` alone: they would send it to a client that refuses it (`gzip;q=0`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http":
            accept = ", ".join(Headers(scope=scope).getlist("accept-encoding"))
            read = b"gzip" if takes_gzip(accept) else b"identity"
            others = [each for each in scope["headers"] if each[0] != NAME]
            # In place: whoever stands before this finds the route in the same scope afterwards.
            scope["headers"] = [*others, (NAME, read)]
        await self._app(scope, receive, send)
