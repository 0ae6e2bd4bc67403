"""Recordings and their trajectories."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from flerm_core.records.queries import RecordingFilter, TrajectoryQuery
from flerm_server.http import etags
from flerm_server.http.api import examples, trajectory_formats
from flerm_server.http.api.parameters import PageSize, PageToken, Tags
from flerm_server.http.api.schemas import RecordingOut, Recordings
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.problems import PROBLEM
from flerm_server.store import queries

api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["recordings"])


async def _filter(
    tags: Tags,
    family: Annotated[str, Query(description="Family; empty: every family")] = "",
    lr_min: Annotated[float | None, Query(description="Lowest learning rate, included")] = None,
    lr_max: Annotated[float | None, Query(description="Highest learning rate, included")] = None,
    role: Annotated[str, Query(description="base or scaled; empty: both")] = "",
    variant: Annotated[
        str, Query(description="Variant, such as plain or matched; empty: any")
    ] = "",
    optimizer: Annotated[str, Query(description="Optimiser's class name; empty: any")] = "",
    status: Annotated[
        str,
        Query(description="running, interrupted, completed, diverged or failed; empty: any"),
    ] = "",
    created_after: Annotated[datetime | None, Query(description="Earliest start, included")] = None,
    created_before: Annotated[datetime | None, Query(description="Latest start, excluded")] = None,
) -> RecordingFilter:
    return RecordingFilter(
        family=family,
        lr_min=lr_min,
        lr_max=lr_max,
        role=role,
        variant=variant,
        optimizer=optimizer,
        status=status,
        tags=tags,
        created_after=created_after,
        created_before=created_before,
    )


@api.get("/recordings", responses=examples.RECORDINGS)
def recordings(
    store: StoreDep,
    filters: Annotated[RecordingFilter, Depends(_filter)],
    page_size: PageSize = 0,
    page_token: PageToken = "",
) -> Recordings:
    """Lists recordings, newest first."""
    page = store.recordings(filters, page_size=page_size, page_token=page_token)
    return Recordings(
        recordings=[RecordingOut.of(each) for each in page.items],
        next_page_token=page.next_token,
    )


@api.get("/recordings/{recording_id}", responses=examples.RECORDING, response_model=RecordingOut)
def recording(store: StoreDep, request: Request, recording_id: examples.RecordingId) -> Response:
    """Gives one recording with its parameters; with an ETag once the recording has ended."""
    found = store.recording(recording_id)
    etag = etags.etag_of([found], "recording")
    if same := etags.unchanged(request, etag):
        return same
    content = RecordingOut.of(found).model_dump(mode="json")
    return JSONResponse(content, headers=etags.headers(etag))


@api.get(
    "/recordings/{recording_id}/trajectory",
    response_class=StreamingResponse,
    responses=examples.TRAJECTORY,
)
def trajectory(
    store: StoreDep,
    request: Request,
    recording_id: examples.RecordingId,
    first_step: Annotated[
        int | None, Query(ge=0, lt=2**63, description="First step, included; none: from the start")
    ] = None,
    last_step: Annotated[
        int | None, Query(ge=0, lt=2**63, description="Last step, included; none: to the end")
    ] = None,
    pattern: Annotated[
        str, Query(description="Pattern of parameter names, shell style; empty: every parameter")
    ] = "",
    max_points: Annotated[
        int, Query(ge=0, lt=2**31, description="Most rows, evenly thinned; 0: every row")
    ] = 0,
    format: Annotated[
        str | None, Query(description="json, csv or parquet; none: by the Accept header")
    ] = None,
) -> Response:
    """Gives the FSLRs of a recording over steps, null or empty where unmeasured.

    FSLRs are in output units per unit learning rate. The answer has an ETag once the recording has
    ended.
    """
    media_type = trajectory_formats.choose(format, request.headers.get("accept", "*/*"))
    query = TrajectoryQuery(
        recording_id=recording_id,
        first_step=first_step,
        last_step=last_step,
        pattern=pattern,
        max_points=max_points,
    )
    selection, columns = queries.select(store, query)
    etag = etags.etag_of([selection.recording], "trajectory", media_type, request.url.query)
    if same := etags.unchanged(request, etag):
        return same
    parameters = selection.recording.spec.parameters
    if columns is not None:
        parameters = parameters.select(columns)
    content = trajectory_formats.write(
        media_type, selection, parameters, store.read(selection, columns)
    )
    name = f"{selection.recording.spec.id}.{trajectory_formats.SUFFIXES[media_type]}"
    headers = {
        **etags.headers(etag),
        "Vary": "Accept",
        "Content-Disposition": f'inline; filename="{name}"',
    }
    return StreamingResponse(content, media_type=media_type, headers=headers)
