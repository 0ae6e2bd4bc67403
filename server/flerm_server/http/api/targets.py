"""Target FSLRs for an architecture, and learning rates matched to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query

from flerm_core.matching.match_cautions import RunFacts
from flerm_core.records.queries import TargetQuery
from flerm_server.http.api import examples
from flerm_server.http.api.core_models import number
from flerm_server.http.api.parameters import Tags
from flerm_server.http.api.schemas import (
    Estimator,
    MatchOut,
    MatchRequest,
    TargetsOut,
    TargetsRequest,
)
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.problems import PROBLEM
from flerm_server.store import queries
from flerm_server.store.interface import Store

MAX_VALUES = 1 << 18  # in an answer, which JSON makes many times as large

api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["targets"])


@api.get("/targets", responses=examples.TARGETS)
def targets_by_query(
    store: StoreDep,
    tags: Tags,
    family: Annotated[str, Query(description="Family whose base recordings give the targets")],
    lr: Annotated[float, Query(description="Base learning rate of the asking run")],
    name: Annotated[
        list[str],
        Query(description="Parameter of the asking model; repeat it; none: the base's own"),
    ] = [],  # noqa: B006 - FastAPI copies it
    policy: Annotated[
        str,
        Query(description="Rates between recorded ones: exact, nearest or interpolate"),
    ] = "interpolate",
    depth: Annotated[str, Query(description="Depth rule; empty: the default")] = "",
    block: Annotated[
        list[str],
        Query(description="Block axis such as `layers.*`; repeat it; none: the family's"),
    ] = [],  # noqa: B006 - FastAPI copies it
    optimizer: Annotated[str, Query(description="Optimiser's class name; empty: any")] = "",
    estimator: Annotated[
        str, Query(description="Estimator's name, such as example; empty: any")
    ] = "",
    step: Annotated[
        int | None, Query(description="Only the targets at this step; none: at every step")
    ] = None,
) -> TargetsOut:
    """Gives target FSLRs for a learning rate, at no more steps than make 262,144 numbers.

    For many names, or for an optimiser's settings, use POST.
    """
    request = TargetsRequest(
        family=family,
        lr=lr,
        names=name,
        policy=policy,
        depth=depth,
        blocks=block,
        optimizer=optimizer,
        estimator=Estimator(name=estimator) if estimator else None,
        tags=tags,
        step=step,
    )
    return _answer(store, request)


@api.post("/targets", responses=examples.TARGETS)
def targets(
    store: StoreDep, asked: Annotated[TargetsRequest, Body(examples=[examples.TARGETS_REQUEST])]
) -> TargetsOut:
    """Gives target FSLRs for a learning rate and an architecture.

    The steps are thinned evenly to no more than make 262,144 numbers; gRPC gives all.
    """
    return _answer(store, asked)


@api.post("/match", responses=examples.MATCH)
def match(
    store: StoreDep, asked: Annotated[MatchRequest, Body(examples=[examples.MATCH_REQUEST])]
) -> MatchOut:
    """Takes measured FSLRs and gives the matched learning rate of each tensor."""
    measured = {
        name: float("nan") if value is None else value for name, value in asked.measured.items()
    }
    found, matched, change = queries.match(
        store, _query(asked), measured, batch_size=asked.batch_size, total_steps=asked.total_steps
    )
    settings, remarks = found.optimizer_config, found.remarks
    if change is not None:
        settings, remarks = change.settings(settings), (*remarks, change.sentence)
    return MatchOut(
        family=asked.family,
        lr=asked.lr,
        learning_rates={name: asked.lr * value for name, value in matched.values.items()},
        multipliers=matched.values,
        targets={name: number(value) for name, value in found.items()},
        unmeasured=list(matched.unmeasured),
        noisy=list(matched.noisy),
        clamped=list(matched.clamped),
        sources=list(found.sources),
        digest=found.digest,
        optimizer_config=dict(settings),
        remarks=list(remarks),
        cautions=list(
            queries.match_cautions(
                store, found, RunFacts(follows=change is not None, tags=asked.tags)
            )
        ),
    )


def _answer(store: Store, asked: TargetsRequest) -> TargetsOut:
    return TargetsOut.of(queries.targets(store, _query(asked), max_values=MAX_VALUES))


def _query(asked: TargetsRequest) -> TargetQuery:
    return TargetQuery(
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
