"""Health for probes, and metrics for Prometheus."""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from flerm_core.errors import FlermError
from flerm_server.http.dependencies import MetricsDep, StoreDep
from flerm_server.http.problems import problem
from flerm_server.logs import public_sentence
from flerm_server.version import version

api = APIRouter(include_in_schema=False)
log = structlog.get_logger("flerm.http")


# Threads that no other request can take. Probes answer even while requests have all the others.
PROBE_THREADS = 2


@api.get("/healthz")
async def alive() -> dict[str, str]:
    """Answers as long as the process does. It needs no thread."""
    return {"status": "alive", "version": version()}


async def _threads(request: Request) -> Any:
    return request.app.state.probe_threads


@api.get("/readyz")
async def ready(
    store: StoreDep, threads: Annotated[CapacityLimiter, Depends(_threads)]
) -> JSONResponse:
    """Answers 200 when the database can be written, else 503."""
    try:
        info = await to_thread.run_sync(store.ready, limiter=threads)
    except FlermError as error:
        log.warning("not ready", reason=str(error))
        return problem(503, public_sentence(error))
    return JSONResponse(
        {"status": "ready", "schema_revision": info.schema_revision, "now": info.now.isoformat()}
    )


@api.get("/metrics")
def measured(metrics: MetricsDep) -> Response:
    """Every metric in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
