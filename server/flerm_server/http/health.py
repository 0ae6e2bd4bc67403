"""Health for probes, and metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from flerm_core.errors import FlermError
from flerm_server.http.dependencies import MetricsDep, StoreDep
from flerm_server.http.problems import problem
from flerm_server.version import version

api = APIRouter(include_in_schema=False)


@api.get("/healthz")
def alive() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive", "version": version()}


@api.get("/readyz")
def ready(store: StoreDep) -> JSONResponse:
    """Answers 200 when the database does, else 503."""
    try:
        info = store.info()
    except FlermError as error:
        return problem(503, str(error))
    return JSONResponse(
        {"status": "ready", "schema_revision": info.schema_revision, "now": info.now.isoformat()}
    )


@api.get("/metrics")
def measured(metrics: MetricsDep) -> Response:
    """Every metric in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
