"""The HTTP application: REST, pages, documentation, metrics, health."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from flerm_core.errors import FlermError
from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.http import problems
from flerm_server.http.api import figures, trajectory_formats
from flerm_server.http.api.events import EventStreams
from flerm_server.http.api.routes import router
from flerm_server.http.authentication import Authenticate
from flerm_server.http.middleware import BoundedBody, Observe, SafeHeaders, SameSite
from flerm_server.http.web import login, match_page, pages
from flerm_server.http.web.assets import Assets
from flerm_server.http.web.templating import Pages, PublicAddress
from flerm_server.metrics import Metrics
from flerm_server.version import version

API_ASSETS = Path(str(files("fastapi_offline"))) / "static"
GZIP_LEVEL = 5  # most of the gain for a third of level 9's time


def create_app(
    store: AuthorizedStore,
    gate: Authenticator,
    metrics: Metrics,
    *,
    local_only: bool,
    secure: bool = False,
    streams: EventStreams | None = None,
    door: PublicAddress | None = None,
    allowed_origins: Sequence[str] = (),
) -> FastAPI:
    """The application on `store`, for those whom `gate` lets in.

    `local_only`: it listens on the loopback, so requests for other hosts are forged: refused. `secure`: browsers reach it by
    https. `streams`: the event streams, for who wants to close them. `door`: what commands shown on pages name.
    `allowed_origins`: pages of other hosts that may read REST (CORS); none by default.
    """
    app = FastAPI(
        title="FLeRM registry",
        version=version(),
        description="Function-space learning rates: what was recorded, and what to train with.",
        docs_url=None,
        redoc_url=None,
    )
    assets = Assets()
    door = door or PublicAddress()
    rendered = Pages(assets)
    problems.install(app, pages.ErrorPage(rendered))
    app.include_router(figures.router(store, streams or EventStreams(metrics.event_streams)))
    app.include_router(router(store))
    app.include_router(match_page.router(store, rendered, door))
    app.include_router(pages.router(store, rendered, door))
    app.include_router(login.router(gate, rendered, secure=secure))
    app.include_router(assets.router())
    app.mount("/docs/assets", StaticFiles(directory=API_ASSETS), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        return rendered.page("docs.html", request)

    @app.get("/healthz", include_in_schema=False)
    def alive() -> dict[str, str]:
        return {"status": "alive", "version": version()}

    @app.get("/readyz", include_in_schema=False)
    def ready() -> JSONResponse:
        try:
            info = store.info()
        except FlermError as error:
            return problems.problem(503, str(error))
        return JSONResponse(
            {
                "status": "ready",
                "schema_revision": info.schema_revision,
                "now": info.now.isoformat(),
            }
        )

    @app.get("/metrics", include_in_schema=False)
    def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    # The last one added is the first to see a request.
    app.add_middleware(Authenticate, gate=gate, metrics=metrics)
    app.add_middleware(BoundedBody)
    # Parquet is compressed already, and events must not wait for a full buffer.
    packed = (*DEFAULT_EXCLUDED_CONTENT_TYPES, trajectory_formats.PARQUET)
    app.add_middleware(
        GZipMiddleware, minimum_size=1000, compresslevel=GZIP_LEVEL, exclude_content_types=packed
    )
    if allowed_origins:
        headers = ["ETag", "Content-Disposition"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match"],
            expose_headers=headers,
        )
    app.add_middleware(SafeHeaders)
    app.add_middleware(SameSite, local_only=local_only, allowed_origins=allowed_origins)
    app.add_middleware(Observe, metrics=metrics)
    return app
