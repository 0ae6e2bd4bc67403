"""Families, their best learning rates and their losses.

Handlers here and in the other files of this folder are plain functions: FastAPI runs them on
threads, so that the event loop stays free.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from flerm_core.records.queries import BestQuery
from flerm_server.http.api import examples
from flerm_server.http.api.parameters import PageSize, PageToken, Tags
from flerm_server.http.api.schemas import (
    BestOut,
    Families,
    FamilyOut,
    LossCurve,
    Losses,
    LossPointOut,
    TransferOut,
    TransferRowOut,
)
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.figure_selection import Picks
from flerm_server.http.problems import PROBLEM
from flerm_server.store import queries

api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["families"])


@api.get("/families", responses=examples.FAMILIES)
def families(
    store: StoreDep,
    prefix: Annotated[str, Query(description="How a family's name begins; empty: any")] = "",
    page_size: PageSize = 0,
    page_token: PageToken = "",
) -> Families:
    """Lists families by name."""
    page = store.families(prefix=prefix, page_size=page_size, page_token=page_token)
    return Families(
        families=[FamilyOut.of(each) for each in page.items], next_page_token=page.next_token
    )


@api.get("/families/{name:path}/best", responses=examples.BEST)
def best(
    store: StoreDep,
    name: examples.FamilyName,
    tags: Tags,
    pick: Picks,
    role: Annotated[str, Query(description="Role of the recordings: base or scaled")] = "base",
    variant: Annotated[
        str, Query(description="Variant of the recordings, such as plain or matched")
    ] = "plain",
    optimizer: Annotated[
        str, Query(description="Optimiser's class name; empty: the one with most recordings")
    ] = "",
    cautions: Annotated[
        bool, Query(description="Whether to say when not to trust a match to this family")
    ] = False,
) -> BestOut:
    """Gives the best learning rate of a family, its spread over seeds, and the rate to try next."""
    query = BestQuery(
        family=name,
        role=role,
        variant=variant,
        optimizer=optimizer,
        tags=tags,
        pick=pick,
        cautions=cautions,
    )
    return BestOut.of(queries.best(store, query))


@api.get("/families/{name:path}/transfer", responses=examples.TRANSFER)
def transfer(store: StoreDep, name: examples.FamilyName, pick: Picks) -> TransferOut:
    """Says for each scale and variant where the optimum lies and what the base's rate costs."""
    report = queries.transfer(store, name, pick)
    return TransferOut(
        family=name,
        best=None if report.best is None else BestOut.of(report.best),
        problem=report.problem,
        kinds={kind.name: kind.shown for kind in report.kinds},
        left_out=report.left_out,
        cautions=list(report.cautions),
        rows=[
            TransferRowOut(
                scale=row.label,
                variant=row.variant,
                seeds=row.seeds,
                runs=row.runs,
                optimum=row.optimum,
                bracketed=row.bracketed,
                shift=row.shift.octaves,
                shift_low=row.shift.low,
                shift_high=row.shift.high,
                loss=row.loss,
                loss_at_base=row.loss_at_base,
                cost=row.cost,
                regret=row.regret.value,
                regret_low=row.regret.low,
                regret_high=row.regret.high,
                points=[LossPointOut.of(each) for each in row.points],
            )
            for row in report.rows
        ],
    )


@api.get("/families/{name:path}/losses", responses=examples.LOSSES)
def losses(store: StoreDep, name: examples.FamilyName) -> Losses:
    """Gives final loss against learning rate, one curve for each role and variant."""
    curves = [
        LossCurve(
            role=role,
            variant=variant,
            points=[LossPointOut.of(each) for each in points],
        )
        for (role, variant), points in queries.losses(store, name).items()
    ]
    return Losses(family=name, curves=curves)


@api.get("/families/{name:path}", responses=examples.FAMILY)
def family(store: StoreDep, name: examples.FamilyName) -> FamilyOut:
    """Gives one family."""
    return FamilyOut.of(store.family(name))
