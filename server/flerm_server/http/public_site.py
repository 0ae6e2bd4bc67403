"""How browsers reach the registry: by which scheme, under which path, through which proxies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

# What templates write as an address of this site.
_ADDRESS = re.compile(r'\s(href|src|action|formaction|data-[a-z-]+)="/(?!/)')


@dataclass(frozen=True, slots=True)
class PublicSite:
    """What the operator says of it.

    root_path: the path under which a proxy has the registry, such as /flerm; empty: none. The proxy
        may keep the path or take it off.
    trusted_proxies: addresses and networks of the proxies whose X-Forwarded-For and
        X-Forwarded-Proto count.
    upstream_tls: a proxy in front speaks TLS.
    open_login: tokens may be sent without TLS from other hosts.
    """

    root_path: str = ""
    trusted_proxies: Sequence[str] = ()
    upstream_tls: bool = False
    open_login: bool = False

    def url(self, path: str) -> str:
        """The address of a path of this registry, as browsers ask for it."""
        return self.root_path + path

    def links(self, page: str) -> str:
        """A page of ours, whose addresses begin at the root of the site.

        Values in a page are escaped, so that none can look like an address of the template.
        """
        if not self.root_path:
            return page
        return _ADDRESS.sub(rf' \1="{self.root_path}/', page)


class AsAsked:
    """Gives each request the scheme, the client and the path that it had before the proxies.

    Paths have no `root_path` from here on, so that no check of a path can forget it.
    """

    def __init__(self, app: ASGIApp, site: PublicSite) -> None:
        self._site = site
        self._app = app
        self._forwarded = ProxyHeadersMiddleware(self._answer, list(site.trusted_proxies))  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = dict(scope)
        if self._site.upstream_tls:
            scope["scheme"] = "https"
        host, port = scope.get("client") or ("", 0)
        if host.startswith("::ffff:") and "." in host:  # an IPv4 client of an IPv6 socket
            scope["client"] = (host.removeprefix("::ffff:"), port)
        await self._forwarded(scope, receive, send)  # type: ignore[arg-type]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        root, path = self._site.root_path, scope["path"]
        if root and (path == root or path.startswith(f"{root}/")):
            scope["path"] = path.removeprefix(root) or "/"
        await self._app(scope, receive, send)


class WithoutSlash:
    """Leads from a path that ends with a slash to the one without."""

    def __init__(self, app: ASGIApp, site: PublicSite) -> None:
        self._site = site
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 307, or passes the request on."""
        path = scope.get("path", "")
        bare = path.rstrip("/")
        if bare not in ("", path) and scope["method"] in ("GET", "HEAD") and is_local(bare):
            query = scope["query_string"].decode("latin-1")
            target = self._site.url(quote(bare)) + (f"?{query}" if query else "")
            await RedirectResponse(target, 307)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_local(target: str) -> bool:
    """Whether an address is a path of this site, for browsers too."""
    return target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
