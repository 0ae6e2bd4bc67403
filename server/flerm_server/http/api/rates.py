"""The learning rates that a matched run trained at, as JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from flerm_core.csv_cells import text_cell
from flerm_core.errors import NotFound, join_names
from flerm_core.matching.matched_rates import MatchedRates
from flerm_core.matching.tensor_rate import TensorRate
from flerm_core.records.checks import quote_value
from flerm_server.http.api import examples, trajectory_formats
from flerm_server.http.api.core_models import Number, number, plain_lists
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.problems import PROBLEM
from flerm_server.store import queries

MAX_ROWS = 400
COLUMNS = (
    "step", "name", "band", "target", "fslr", "multiplier", "learning_rate", "ratio", "note",
)  # fmt: skip

api = APIRouter(prefix="/api/v1", responses=PROBLEM, tags=["recordings"])


class TensorRates(BaseModel):
    """One tensor of a matched run over the answer's steps; null: not known."""

    name: str
    band: str
    shape: list[int]
    note: str = Field(description="empty: matched; clamped, noise, unmeasured, no target")
    target: list[Number] = Field(description="FSLR to reach")
    fslr: list[Number] = Field(description="measured FSLR")
    multiplier: list[Number]
    learning_rate: list[Number] = Field(description="schedule · multiplier")
    ratio: list[Number] = Field(description="multiplier / batch_factor · fslr / target")


class Rates(BaseModel):
    """The learning rates of a matched run, and where its targets come from."""

    recording_id: str
    depth: str = Field(description="depth rule; empty: targets are those reached at the match")
    clock: str = Field(description="step, tokens or fraction; empty as `depth`")
    batch_factor: float = Field(
        description="factor in every multiplier, by which the run follows its batch size and length"
    )
    sources: list[str] = Field(description="base recordings that there are")
    missing: list[str] = Field(description="base recordings that the registry has no more")
    steps: list[int]
    schedule: list[Number] = Field(description="learning rate of the schedule at these steps")
    match_step: int = Field(description="the last step at which the run was matched")
    tensors: list[TensorRates]


@api.get(
    "/recordings/{recording_id}/rates",
    response_model=Rates,
    responses=examples.RATES,
)
def rates(
    store: StoreDep,
    request: Request,
    recording_id: examples.RecordingId,
    pattern: Annotated[
        str, Query(description="Pattern of tensor names, shell style; empty: every tensor")
    ] = "",
    max_points: Annotated[
        int, Query(ge=2, le=MAX_ROWS, description="Most steps, evenly thinned")
    ] = MAX_ROWS,
    format: Annotated[
        str | None, Query(description="json, csv or parquet; none: by the Accept header")
    ] = None,
) -> Response:
    """Gives target, measured FSLR, multiplier and learning rate of each tensor of a matched run."""
    media_type = trajectory_formats.choose(format, request.headers.get("accept", "*/*"))
    found = queries.matched_rates(store, recording_id, max_points=max_points)
    names = found.parameters.names
    chosen = [at for at, name in enumerate(names) if not pattern or fnmatchcase(name, pattern)]
    if not chosen:
        raise NotFound(
            f"pattern {quote_value(pattern)} matches none of the tensors; "
            f"there are {join_names(names)}"
        )
    name = f"{recording_id}-rates.{trajectory_formats.SUFFIXES[media_type]}"
    headers = {"Vary": "Accept", "Content-Disposition": f'inline; filename="{name}"'}
    if media_type == trajectory_formats.JSON:
        content = _model(recording_id, found, chosen).model_dump(mode="json")
        return JSONResponse(content, headers=headers)
    if media_type == trajectory_formats.CSV:
        return Response(_as_csv(found, chosen), media_type=media_type, headers=headers)
    return Response(_as_parquet(found, chosen), media_type=media_type, headers=headers)


def _model(recording_id: str, found: MatchedRates, chosen: list[int]) -> Rates:
    columns = {
        "target": found.targets,
        "fslr": found.fslr,
        "multiplier": found.multipliers,
        "learning_rate": found.rates,
        "ratio": found.ratios,
    }
    listed = found.parameters
    return Rates(
        recording_id=recording_id,
        depth=found.depth,
        clock=found.clock,
        batch_factor=found.batch_factor,
        sources=[each.spec.id for each in found.sources],
        missing=list(found.missing),
        steps=found.steps.tolist(),
        schedule=plain_lists(found.schedule),
        match_step=found.match_step,
        tensors=[
            TensorRates(
                name=listed.names[at],
                band=listed.bands[at],
                shape=list(listed.shapes[at]),
                note=found.notes[at],
                **{name: plain_lists(values[:, at]) for name, values in columns.items()},
            )
            for at in chosen
        ],
    )


def _lines(found: MatchedRates, chosen: list[int]) -> Iterator[tuple[int, TensorRate]]:
    """Each step's tensors, one after the other."""
    for step in found.steps.tolist():
        rates = found.at(step)
        yield from ((step, rates[at]) for at in chosen)


def _numbers(each: TensorRate) -> tuple[float, ...]:
    return each.target, each.fslr, each.multiplier, each.rate, each.ratio


def _as_csv(found: MatchedRates, chosen: list[int]) -> str:
    """A line for each step and tensor; a number that is not known is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step, each in _lines(found, chosen):
        values = (f"{value:.9g}" if math.isfinite(value) else "" for value in _numbers(each))
        writer.writerow((step, text_cell(each.name), each.band, *values, each.note))
    return text.getvalue()


def _as_parquet(found: MatchedRates, chosen: list[int]) -> bytes:
    """The rows of `_as_csv` as a Parquet file."""
    # Here, not above, as in `trajectory_formats.write`.
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = list(_lines(found, chosen))
    columns = [
        [step for step, _ in lines],
        [each.name for _, each in lines],
        [each.band for _, each in lines],
        *(
            [number(value) for value in column]
            for column in zip(*(_numbers(each) for _, each in lines), strict=True)
        ),
        [each.note for _, each in lines],
    ]
    kinds = [pa.int64(), pa.string(), pa.string(), *[pa.float64()] * 5, pa.string()]
    table = pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)],
        names=list(COLUMNS),
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
