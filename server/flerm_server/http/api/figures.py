"""Figures for plotly, as the pages draw them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from flerm_core.errors import InvalidInput, NotFound, join_names
from flerm_core.figures import Figure, fslr_figure, ratio_figure, run_figure, transfer_figure
from flerm_core.figures.trajectory_figure import MAX_POINTS
from flerm_core.records.checks import quote_value
from flerm_core.records.queries import TrajectoryQuery
from flerm_core.trajectory import Trajectory
from flerm_server.http import etags
from flerm_server.http.api import examples
from flerm_server.http.api.schemas import FigureOut
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.figure_selection import Picks, matching_names, recording_ids
from flerm_server.http.kept_answers import KeptAnswersDep, kept_response
from flerm_server.http.problems import PROBLEM
from flerm_server.store import queries
from flerm_server.store.interface import Store
from flerm_server.store.peers import peers

api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["figures"])


@api.get("/families/{name:path}/figure", responses=examples.FIGURE, response_model=FigureOut)
def losses(
    store: StoreDep,
    kept: KeptAnswersDep,
    request: Request,
    name: examples.FamilyName,
    pick: Picks,
    scale: Annotated[
        str, Query(description="The setting that differs, such as width; empty: the usual one")
    ] = "",
    columns: Annotated[int, Query(ge=1, le=8, description="Panels in a row")] = 4,
) -> Response:
    """Draws final loss against learning rate: a panel for each variant, a curve for each scale.

    A dotted line marks the base's optimum.
    """

    def draw() -> bytes:
        report = queries.transfer(store, name, pick)
        return bytes(_answer(transfer_figure(report.panels(scale), columns=columns)).body)

    return kept_response(
        kept, request, lambda: store.family_runs(name).version, draw, "application/json"
    )


@api.get("/recordings/{recording_id}/figure", responses=examples.FIGURE, response_model=FigureOut)
def recording(
    store: StoreDep,
    request: Request,
    recording_id: examples.RecordingId,
    kind: Annotated[
        Literal["fslr", "run", "rates"],
        Query(
            description="fslr: FSLRs by band; run: loss and learning rate; rates: of a matched "
            "run, multiplier · FSLR over the target"
        ),
    ] = "fslr",
    pattern: Annotated[
        str,
        Query(description="Pattern of parameters to draw one by one, shell style; at most 40 are"),
    ] = "",
    first_step: Annotated[
        int | None, Query(ge=0, lt=2**53, description="First step, included; none: from the start")
    ] = None,
    last_step: Annotated[
        int | None, Query(ge=0, lt=2**53, description="Last step, included; none: to the end")
    ] = None,
) -> Response:
    """Draws FSLRs, or loss and learning rate, over the steps of a recording.

    Rows are evenly thinned to 400. The answer has an ETag once the recording has ended.
    """
    etag = etags.etag_of([store.recording(recording_id)], "figure", request.url.query)
    if same := etags.unchanged(request, etag):
        return same
    if kind == "rates":
        matched = queries.matched_rates(store, recording_id, max_points=MAX_POINTS)
        shown = matched.ratio_trajectory.between(first_step, last_step)
        return _answer(ratio_figure(shown, _tensors(shown, pattern)), etag)
    query = TrajectoryQuery(
        recording_id=recording_id,
        first_step=first_step,
        last_step=last_step,
        max_points=MAX_POINTS,
    )
    trajectory = queries.trajectory(store, query)
    if kind == "run":
        return _answer(run_figure(trajectory, _peers(store, recording_id, query)), etag)
    return _answer(fslr_figure(trajectory, _tensors(trajectory, pattern)), etag)


def _tensors(trajectory: Trajectory, pattern: str) -> list[str]:
    """The names to draw. Raises `NotFound` for a pattern that fits none."""
    tensors = matching_names(trajectory.names, pattern)
    if pattern and not tensors:
        raise NotFound(
            f"pattern {quote_value(pattern)} matches none of the parameters; "
            f"there are {join_names(trajectory.names)}"
        )
    return tensors


def _peers(store: Store, recording_id: str, query: TrajectoryQuery) -> dict[str, Trajectory]:
    """The runs whose losses are drawn beside that of a recording, by their labels."""
    return {
        label: queries.trajectory(store, replace(query, recording_id=each.spec.id))
        for label, each in peers(store, store.recording(recording_id)).items()
    }


@api.get("/figures/compare", responses=examples.FIGURE, response_model=FigureOut)
def compare(
    store: StoreDep,
    request: Request,
    ids: Annotated[
        list[str],
        Query(
            description="Recording ids, 1 to 8; the first is the base of the ratios",
            examples=[[examples.ID]],
        ),
    ],
    to: Annotated[
        str, Query(description="The recording whose ratios are drawn; empty: the last of `ids`")
    ] = "",
    raw: Annotated[
        bool, Query(description="FSLRs at learning rate 1, without rates and multipliers")
    ] = False,
) -> Response:
    """Draws how far the updates of one recording move the outputs, over the targets that another
    one gives, by band: learning rate · multiplier · FSLR.

    1 means that the recording moves the outputs as far as the base does.
    """
    wanted = recording_ids(ids)
    if not wanted:
        raise InvalidInput("ids: 0 recordings given; at least one is needed")
    base, other = store.recording(wanted[0]), store.recording(to or wanted[-1])
    blocks = store.family(base.spec.family).blocks
    etag = etags.etag_of([base, other], "compare", str(raw), *blocks)
    if same := etags.unchanged(request, etag):
        return same
    ratios = queries.target_ratios(
        store, base.spec.id, other.spec.id, raw=raw, max_points=MAX_POINTS
    )
    return _answer(ratio_figure(ratios), etag)


def _answer(figure: Figure, etag: str | None = None) -> JSONResponse:
    content: dict[str, Any] = figure
    return JSONResponse(content, headers=etags.headers(etag))
