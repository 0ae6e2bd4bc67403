"""The routes under /api/v1."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from flerm_core.errors import InvalidInput
from flerm_core.matching.match import multipliers
from flerm_core.matching.targets import Targets
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_server.http import etags
from flerm_server.http.api import examples, trajectory_formats
from flerm_server.http.api.schemas import (
    BestOut,
    Estimator,
    Families,
    FamilyOut,
    LossCurve,
    Losses,
    LossPointOut,
    MatchOut,
    MatchRequest,
    RecordingOut,
    Recordings,
    TargetsOut,
    TargetsRequest,
    number,
)
from flerm_server.http.problems import PROBLEM
from flerm_server.store import queries
from flerm_server.store.interface import Store

PageSize = Annotated[int, Query(ge=0, le=1000, description="items of a page; 0: 100")]
PageToken = Annotated[str, Query(description="next_page_token of the page before")]
Tags = Annotated[list[str], Query(description="key=value; all given ones must be there")]


def router(store: Store) -> APIRouter:
    """All of /api/v1, on `store`. Handlers are plain functions: they run on threads, beside the event loop."""
    api = APIRouter(prefix="/api/v1", responses=PROBLEM)

    @api.get("/families", tags=["families"], responses=examples.FAMILIES)
    def families(prefix: str = "", page_size: PageSize = 0, page_token: PageToken = "") -> Families:
        """Families by name."""
        page = store.families(prefix=prefix, page_size=page_size, page_token=page_token)
        return Families(
            families=[FamilyOut.of(each) for each in page.items], next_page_token=page.next_token
        )

    @api.get("/families/{name:path}/best", tags=["families"], responses=examples.BEST)
    def best(
        name: examples.FamilyName,
        role: str = "base",
        variant: str = "plain",
        optimizer: str = "",
        tag: Tags = [],  # noqa: B006
    ) -> BestOut:
        """The best learning rate of a family, its spread, and which to try next."""
        return BestOut.of(
            queries.best(
                store,
                BestQuery(
                    family=name, role=role, variant=variant, optimizer=optimizer, tags=_tags(tag)
                ),
            )
        )

    @api.get("/families/{name:path}/losses", tags=["families"], responses=examples.LOSSES)
    def losses(name: examples.FamilyName) -> Losses:
        """Loss against learning rate, one curve per role and variant."""
        return Losses(
            family=name,
            curves=[
                LossCurve(
                    role=role,
                    variant=variant,
                    points=[
                        LossPointOut(
                            lr=each.lr,
                            loss=number(each.loss),
                            spread=number(each.spread),
                            seeds=each.seeds,
                            diverged=each.diverged,
                        )
                        for each in points
                    ],
                )
                for (role, variant), points in queries.losses(store, name).items()
            ],
        )

    @api.get("/families/{name:path}", tags=["families"], responses=examples.FAMILY)
    def family(name: examples.FamilyName) -> FamilyOut:
        """One family."""
        return FamilyOut.of(store.family(name))

    @api.get("/recordings", tags=["recordings"], responses=examples.RECORDINGS)
    def recordings(
        family: str = "",
        lr_min: float | None = None,
        lr_max: float | None = None,
        role: str = "",
        variant: str = "",
        optimizer: str = "",
        status: str = "",
        tag: Tags = [],  # noqa: B006
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: PageSize = 0,
        page_token: PageToken = "",
    ) -> Recordings:
        """Recordings, newest first."""
        filters = RecordingFilter(
            family=family,
            lr_min=lr_min,
            lr_max=lr_max,
            role=role,
            variant=variant,
            optimizer=optimizer,
            status=status,
            tags=_tags(tag),
            created_after=created_after,
            created_before=created_before,
        )
        page = store.recordings(filters, page_size=page_size, page_token=page_token)
        return Recordings(
            recordings=[RecordingOut.of(each) for each in page.items],
            next_page_token=page.next_token,
        )

    @api.get(
        "/recordings/{recording_id}",
        tags=["recordings"],
        responses=examples.RECORDING,
        response_model=RecordingOut,
    )
    def recording(request: Request, recording_id: examples.RecordingId) -> Response:
        """One recording with its parameters. Once it has ended, with an ETag."""
        found = store.recording(recording_id)
        etag = etags.etag_of([found], "recording")
        if same := etags.unchanged(request, etag):
            return same
        return JSONResponse(
            RecordingOut.of(found).model_dump(mode="json"), headers=etags.headers(etag)
        )

    @api.get(
        "/recordings/{recording_id}/trajectory",
        tags=["recordings"],
        response_class=StreamingResponse,
        responses=examples.TRAJECTORY,
    )
    def trajectory(
        request: Request,
        recording_id: examples.RecordingId,
        first_step: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
        last_step: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
        pattern: Annotated[
            str, Query(description="of parameter names, shell style; empty: all")
        ] = "",
        max_points: Annotated[
            int, Query(ge=0, lt=2**31, description="thin rows evenly to at most so many; 0: all")
        ] = 0,
        format: Annotated[
            str | None, Query(description="json, csv or parquet; else by the Accept header")
        ] = None,
    ) -> Response:
        """FSLRs over steps, null or empty where unmeasured. Once the recording has ended, with an ETag."""
        media = trajectory_formats.choose(format, request.headers.get("accept", "*/*"))
        query = TrajectoryQuery(
            recording_id=recording_id,
            first_step=first_step,
            last_step=last_step,
            pattern=pattern,
            max_points=max_points,
        )
        selection, columns = queries.select(store, query)
        parameters = selection.recording.spec.parameters
        chosen = parameters if columns is None else parameters.select(columns)
        rows = store.read(selection, columns)
        etag = etags.etag_of([selection.recording], "trajectory", media, request.url.query)
        if same := etags.unchanged(request, etag):
            return same
        headers = {
            **etags.headers(etag),
            "Vary": "Accept",
            "Content-Disposition": f'inline; filename="{selection.recording.spec.id}.{_suffix(media)}"',
        }
        if media == trajectory_formats.JSON:
            return StreamingResponse(
                trajectory_formats.as_json(selection, chosen, rows),
                media_type=media,
                headers=headers,
            )
        if media == trajectory_formats.CSV:
            return StreamingResponse(
                trajectory_formats.as_csv(chosen, rows), media_type=media, headers=headers
            )
        from flerm_server.http.api.parquet import as_parquet

        return StreamingResponse(
            as_parquet(selection, chosen, rows)(), media_type=media, headers=headers
        )

    @api.get("/targets", tags=["targets"], responses=examples.TARGETS)
    def targets_by_query(
        family: str,
        lr: float,
        name: Annotated[
            list[str], Query(description="the asker's parameters; none: the base's own")
        ] = [],  # noqa: B006
        policy: str = "interpolate",
        depth: str = "",
        block: Annotated[list[str], Query(description="block axes such as layers.*")] = [],  # noqa: B006
        optimizer: str = "",
        estimator: Annotated[str, Query(description="its name, such as example")] = "",
        tag: Tags = [],  # noqa: B006
        step: int | None = None,
    ) -> TargetsOut:
        """Target FSLRs for a learning rate. For many names, or an optimiser's settings: POST."""
        asked = TargetsRequest(
            family=family,
            lr=lr,
            names=name,
            policy=policy,
            depth=depth,
            blocks=block,
            optimizer=optimizer,
            estimator=Estimator(name=estimator) if estimator else None,
            tags=_tags(tag),
            step=step,
        )
        return TargetsOut.of(_targets(asked))

    @api.post("/targets", tags=["targets"], responses=examples.TARGETS)
    def targets(
        asked: Annotated[TargetsRequest, Body(examples=[examples.TARGETS_REQUEST])],
    ) -> TargetsOut:
        """Target FSLRs for a learning rate and an architecture."""
        return TargetsOut.of(_targets(asked))

    @api.post("/match", tags=["targets"], responses=examples.MATCH)
    def match(asked: Annotated[MatchRequest, Body(examples=[examples.MATCH_REQUEST])]) -> MatchOut:
        """Measured FSLRs in, matched learning rates out."""
        measured = {
            name: float("nan") if value is None else value for name, value in asked.measured.items()
        }
        found = _targets(
            asked if asked.names else asked.model_copy(update={"names": list(measured)})
        )
        wanted = found.at(step=asked.step) if asked.step is not None else dict(found)
        matched = multipliers(wanted, measured)
        return MatchOut(
            family=asked.family,
            lr=asked.lr,
            learning_rates={name: asked.lr * value for name, value in matched.values.items()},
            multipliers=matched.values,
            targets={name: number(value) for name, value in wanted.items()},
            unmeasured=list(matched.unmeasured),
            noisy=list(matched.noisy),
            clamped=list(matched.clamped),
            sources=list(found.sources),
            digest=found.digest,
        )

    def _targets(asked: TargetsRequest) -> Targets:
        query = TargetQuery(
            family=asked.family,
            lr=asked.lr,
            names=tuple(asked.names),
            shapes=tuple(tuple(shape) for shape in asked.shapes),
            policy=asked.policy,
            depth=asked.depth,
            blocks=tuple(asked.blocks),
            optimizer=asked.optimizer,
            optimizer_config=asked.optimizer_config,
            estimator=asked.estimator.to_core() if asked.estimator else None,
            tags=asked.tags,
            step=asked.step,
        )
        return queries.targets(store, query)

    return api


def _tags(pairs: list[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidInput(f"tag {pair[:80]!r}: key=value is allowed")
        tags[key] = value
    return tags


def _suffix(media: str) -> str:
    return next(suffix for suffix, kind in trajectory_formats.FORMATS.items() if kind == media)
