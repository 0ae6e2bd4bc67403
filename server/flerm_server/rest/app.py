"""The HTTP application: REST, pages, documentation, metrics, health."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from flerm_core.errors import FlermError
from flerm_server.metrics import Metrics
from flerm_server.rest import problems
from flerm_server.rest.middleware import LocalOnly, Observe
from flerm_server.rest.routes import router
from flerm_server.store.base import Store
from flerm_server.version import version
from flerm_server.web import pages

STATIC = Path(__file__).parent.parent / "web" / "static"
API_ASSETS = Path(str(files("fastapi_offline"))) / "static"


def create_app(store: Store, metrics: Metrics, *, local_only: bool) -> FastAPI:
    """The application on `store`. `local_only`: it listens on the loopback, so requests for other hosts are forged: refused."""
    app = FastAPI(
        title="FLeRM registry",
        version=version(),
        description="Function-space learning rates: what was recorded, and what to train with.",
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    app.include_router(router(store))
    app.include_router(pages.router(store))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.mount("/docs/assets", StaticFiles(directory=API_ASSETS), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="FLeRM registry: REST",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/static/favicon.svg",
        )

    @app.get("/healthz", include_in_schema=False)
    def alive() -> dict[str, str]:
        return {"status": "alive", "version": version()}

    @app.get("/readyz", include_in_schema=False)
    def ready() -> JSONResponse:
        try:
            info = store.info()
        except FlermError as error:
            return problems.problem(503, str(error))
        return JSONResponse({"status": "ready", "schema_revision": info.schema_revision, "now": info.now.isoformat()})

    @app.get("/metrics", include_in_schema=False)
    def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(Observe, metrics=metrics)
    if local_only:
        app.add_middleware(LocalOnly)
    return app
