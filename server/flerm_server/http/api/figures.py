"""Figures for plotly, and the events that tell when to ask again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import Ambiguous, InvalidInput, NotFound, join_names
from flerm_core.figures import (
    Figure,
    curves_of,
    fslr_figure,
    loss_figure,
    ratio_figure,
    ratios,
    run_figure,
)
from flerm_core.records.checks import quote_value
from flerm_core.records.queries import BestQuery, RecordingFilter
from flerm_core.tuning.best_lr import Best
from flerm_server.http import etags
from flerm_server.http.api import examples
from flerm_server.http.api.events import EventStreams, events
from flerm_server.http.api.schemas import FigureOut
from flerm_server.http.problems import PROBLEM
from flerm_server.http.trajectory_loading import matching_names, thinned_trajectory
from flerm_server.store import queries
from flerm_server.store.interface import Store

MAX_COMPARED = 8

Step = Annotated[int | None, Query(ge=0, lt=2**53)]
Ids = Annotated[
    list[str],
    Query(
        description="recording ids; the first is the base of the ratios", examples=[[examples.ID]]
    ),
]


def router(store: Store, streams: EventStreams) -> APIRouter:
    """What draws, under /api/v1."""
    api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["figures"])

    @api.get("/families/{name:path}/figure", responses=examples.FIGURE, response_model=FigureOut)
    def losses(name: examples.FamilyName) -> JSONResponse:
        """Final loss against learning rate, one curve per role, variant and scale; the best base rate marked."""
        store.family(name)
        curves = curves_of(store.all_recordings(RecordingFilter(family=name)))
        return _answer(loss_figure(curves, best_or_none(store, name)))

    @api.get(
        "/recordings/{recording_id}/figure", responses=examples.FIGURE, response_model=FigureOut
    )
    def recording(
        request: Request,
        recording_id: examples.RecordingId,
        kind: Annotated[
            Literal["fslr", "run"],
            Query(description="fslr: FSLRs by band; run: loss and learning rate"),
        ] = "fslr",
        pattern: Annotated[
            str, Query(description="tensors to draw one by one, shell style; at most 40 are")
        ] = "",
        first_step: Step = None,
        last_step: Step = None,
    ) -> Response:
        """FSLRs, or loss and learning rate, over the steps of a recording. Rows are thinned to 400."""
        etag = etags.etag_of([store.recording(recording_id)], "figure", request.url.query)
        if same := etags.unchanged(request, etag):
            return same
        trajectory = thinned_trajectory(
            store, recording_id, first_step=first_step, last_step=last_step
        )
        tensors = matching_names(trajectory.names, pattern)
        if pattern and not tensors:
            raise NotFound(
                f"pattern {quote_value(pattern)} matches none of the parameters; there are {join_names(trajectory.names)}"
            )
        return _answer(
            run_figure(trajectory) if kind == "run" else fslr_figure(trajectory, tensors), etag
        )

    @api.get("/figures/compare", responses=examples.FIGURE, response_model=FigureOut)
    def compare(
        request: Request,
        ids: Ids,
        to: Annotated[str, Query(description="id whose ratios to draw")] = "",
    ) -> Response:
        """FSLRs of one recording over the targets that another one gives, by band; 1 is matched."""
        wanted = [each for text in ids for each in text.split(",") if each]
        if not wanted or len(wanted) > MAX_COMPARED:
            raise InvalidInput(f"ids: {len(wanted)} given; 1 to {MAX_COMPARED} are allowed")
        pair = [store.recording(wanted[0]), store.recording(to or wanted[-1])]
        blocks = store.family(pair[0].spec.family).blocks
        etag = etags.etag_of(pair, "compare", *blocks)
        if same := etags.unchanged(request, etag):
            return same
        base, other = (thinned_trajectory(store, each.spec.id) for each in pair)
        return _answer(ratio_figure(ratios(base, other, blocks=blocks)), etag)

    @api.get(
        "/recordings/{recording_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"example": examples.EVENT}}}},
    )
    async def follow(request: Request, recording_id: examples.RecordingId) -> StreamingResponse:
        """Server-sent events while a recording runs: `rows` when there are new ones, `end` when it has ended."""
        found = await run_in_threadpool(store.recording, recording_id)
        return StreamingResponse(
            events(store, streams, found, request.state.readmit),
            media_type="text/event-stream",
            # The second keeps nginx from gathering events.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return api


def best_or_none(
    store: Store, family: str, role: str = "base", variant: str = "plain"
) -> Best | None:
    """The best rate, or None where there is none yet or several optimisers would mix."""
    try:
        return queries.best(store, BestQuery(family=family, role=role, variant=variant))
    except (NotFound, Ambiguous):
        return None


def _answer(figure: Figure, etag: str | None = None) -> JSONResponse:
    content: dict[str, Any] = figure
    return JSONResponse(content, headers=etags.headers(etag))
