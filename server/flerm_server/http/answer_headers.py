"""What every HTTP answer has: headers that limit browsers, and no body where none was asked for."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Inline styles are plotly.js's; images as data or blob are plotly.js's and swagger-ui's icons.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
NO_STORE = (b"cache-control", b"no-store")
ONLY_TLS = (b"strict-transport-security", b"max-age=31536000")


class SecurityHeaders:
    """Adds headers that tell a browser to load nothing from other sites, to trust the content
    type, and to come back by TLS only where it came by TLS.

    An answer that does not say how it may be kept, and has no version, may not be kept: a cache in
    front could show one user's answer to another, because sessions are in cookies.

    It stands outside of all else, so that answers to errors have the headers too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and adds the headers to the answer."""

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *SECURITY_HEADERS]
                if scope["scheme"] == "https":
                    headers.append(ONLY_TLS)
                if not {b"cache-control", b"etag"} & {name.lower() for name, _ in headers}:
                    headers.append(NO_STORE)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, add_headers if scope["type"] == "http" else send)


class HeadAsGet:
    """Answers HEAD as GET, without the body, for each path that has GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        ended = False

        async def without_body(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                await send(message)
            elif not ended:  # what follows, such as further events of a stream, is not asked for
                ended = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app({**scope, "method": "GET"}, receive, without_body)
