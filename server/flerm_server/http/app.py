"""The HTTP application: REST, pages, documentation, metrics, health."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.http import health, problems
from flerm_server.http.answer_headers import HeadAsGet, SecurityHeaders
from flerm_server.http.api import (
    events,
    families,
    figures,
    rates,
    recordings,
    targets,
    trajectory_formats,
)
from flerm_server.http.api.parameters import check_parameters
from flerm_server.http.authentication import Authenticate
from flerm_server.http.encodings import ReadEncodings
from flerm_server.http.kept_answers import GZIP_LEVEL, KeptAnswers
from flerm_server.http.middleware import (
    LimitBody,
    Observe,
    RefuseOtherSites,
    RefuseTwoLengths,
    SendInPieces,
    ShareThreads,
)
from flerm_server.http.public_site import AsAsked, PublicSite, WithoutSlash
from flerm_server.http.web import assets, login, match_page, pages, recording_page
from flerm_server.http.web.templating import Pages, PublicAddress
from flerm_server.metrics import Metrics
from flerm_server.version import version

API_ASSETS = Path(str(files("fastapi_offline"))) / "static"


def create_app(
    store: AuthorizedStore,
    authenticator: Authenticator,
    metrics: Metrics,
    *,
    local_only: bool,
    site: PublicSite | None = None,
    event_streams: events.EventStreams | None = None,
    public_address: PublicAddress | None = None,
    allowed_origins: Sequence[str] = (),
) -> FastAPI:
    """The application.

    store: what the routes read, as each principal may.
    authenticator: decides who a request is from, and refuses whom it does not know.
    metrics: counts the requests.
    local_only: the server listens on the loopback, so a request for another host is forged and is
        refused.
    site: how browsers reach the server; by default at its own address.
    event_streams: the open streams, for a caller who ends them; by default the application's own.
    public_address: the gRPC address that the commands on pages name.
    allowed_origins: other sites whose pages may read REST (CORS); by default none.
    """
    site = site or PublicSite()
    app = FastAPI(
        title="FLeRM registry",
        version=version(),
        description="Function-space learning rates: what was recorded, and what to train with.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # `WithoutSlash` does that
        servers=[{"url": site.root_path}] if site.root_path else None,
    )
    app.state.store = store
    app.state.authenticator = authenticator
    app.state.metrics = metrics
    app.state.site = site
    app.state.event_streams = event_streams or events.EventStreams(metrics.event_streams)
    app.state.public_address = public_address or PublicAddress()
    app.state.probe_threads = CapacityLimiter(health.PROBE_THREADS)
    app.state.assets = assets.Assets()
    app.state.kept_answers = KeptAnswers()
    app.state.pages = Pages(app.state.assets, site)
    problems.install(app, pages.ErrorPage(app.state.pages))
    # In this order: `/families/{name:path}` also fits the paths of the routes before it.
    for routes in (figures, events, families, rates, recordings, targets):
        app.include_router(routes.api, dependencies=[Depends(check_parameters)])
    for routes_of_pages in (match_page, pages, recording_page, login, assets):
        app.include_router(routes_of_pages.web)
    app.include_router(health.api)
    app.mount("/docs/assets", StaticFiles(directory=API_ASSETS), name="docs-assets")
    _add_middleware(app, local_only=local_only, allowed_origins=allowed_origins)
    # Around what starlette answers by itself for errors, too.
    inner = WithoutSlash(HeadAsGet(app.build_middleware_stack()), site)
    app.middleware_stack = AsAsked(SecurityHeaders(inner), site)
    return app


def _add_middleware(app: FastAPI, *, local_only: bool, allowed_origins: Sequence[str]) -> None:
    """What every request passes. The one that is added last sees a request first."""
    app.add_middleware(ShareThreads)
    app.add_middleware(
        Authenticate,
        authenticator=app.state.authenticator,
        metrics=app.state.metrics,
        site=app.state.site,
    )
    app.add_middleware(LimitBody)
    # Parquet is compressed in itself, and events must not wait until a buffer is full.
    app.add_middleware(
        GZipMiddleware,
        minimum_size=1000,
        compresslevel=GZIP_LEVEL,
        exclude_content_types=(*DEFAULT_EXCLUDED_CONTENT_TYPES, trajectory_formats.PARQUET),
    )
    app.add_middleware(ReadEncodings)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match"],
            expose_headers=["ETag", "Content-Disposition"],
        )
    app.add_middleware(SendInPieces)
    app.add_middleware(RefuseOtherSites, local_only=local_only, allowed_origins=allowed_origins)
    app.add_middleware(RefuseTwoLengths)
    app.add_middleware(Observe, metrics=app.state.metrics)
