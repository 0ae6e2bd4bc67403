"""The matcher's page: an architecture pasted in, a table of learning rates and the code that applies it out."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import FlermError, InvalidInput
from flerm_core.matching.match import Multipliers, multipliers
from flerm_core.matching.targets import Targets
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.checks import MAX_INTEGER, quote_value
from flerm_core.records.queries import BestQuery, TargetQuery
from flerm_server.http.problems import status_of
from flerm_server.http.trajectory_loading import load_selection
from flerm_server.http.web.templating import Pages, PublicAddress
from flerm_server.store import queries
from flerm_server.store.interface import Store

MAX_TEXT = 4 << 20


@dataclass(frozen=True, slots=True)
class Pasted:
    """What was pasted: the tensors' names, and their measured FSLRs (NaN: unmeasured) or shapes where given."""

    names: tuple[str, ...]
    measured: dict[str, float]
    shapes: tuple[tuple[int, ...], ...]


def parse(text: str) -> Pasted:
    """Reads lines of `name`, `name FSLR` or `name [8, 8]`, or a JSON object of names to either.

    Raises `InvalidInput` naming the line.
    """
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"tensors: the text begins with {{ but is no JSON ({error})"
            ) from None
        entries = [
            (f"tensors: {quote_value(name)}", str(name), value) for name, value in content.items()
        ]
    else:
        entries = [_entry(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    measured: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    names = [name for _, name, _ in entries]
    for where, name, value in entries:
        if isinstance(value, list) and all(isinstance(size, int) for size in value):
            shapes[name] = tuple(value)
        elif (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        ):
            measured[name] = float(value)
        elif value is not None:
            raise InvalidInput(
                f"{where} has {quote_value(value)}; a measured FSLR, a shape such as [64, 32] or nothing is allowed"
            )
    if measured:
        measured = {name: measured.get(name, math.nan) for name in names}
    return Pasted(
        tuple(names),
        measured,
        tuple(shapes[name] for name in names) if len(shapes) == len(names) else (),
    )


def _entry(at: int, line: str) -> tuple[str, str, object]:
    name, _, rest = (
        line.strip().partition(" ") if " " in line.strip() else line.strip().partition("\t")
    )
    name, rest = name.rstrip(":,=").strip("\"'"), rest.strip().lstrip(":=").strip().rstrip(",")
    where = f"tensors: line {at}, {quote_value(name)},"
    if not rest:
        return where, name, None
    try:
        return (
            where,
            name,
            json.loads(
                rest.replace("(", "[")
                .replace(",)", "]")
                .replace(")", "]")
                .removeprefix("torch.Size")
            ),
        )
    except (ValueError, RecursionError):
        return where, name, None if rest.lower() == "nan" else rest


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    target: float
    measured: float
    multiplier: float | None
    rate: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Matched:
    """The answer: the rate and step that were asked, where they came from, the rows and two ways to apply them."""

    lr: float
    step: int | None
    targets: Targets
    rows: tuple[Row, ...]
    by_hand: str


def match(store: Store, family: str, lr_text: str, tensors: str, step_text: str = "") -> Matched:
    """Matches what was pasted. Blank, `lr_text` takes the family's best recorded rate and `step_text` the first measured step.

    Raises as queries do.
    """
    step = _step(step_text)
    if lr_text.strip():
        try:
            lr = float(lr_text)
        except ValueError:
            raise InvalidInput(
                f"lr: {quote_value(lr_text)} is no number; a learning rate such as 4e-3 is allowed"
            ) from None
    else:
        lr = queries.best(store, BestQuery(family=family)).lr
    pasted = parse(tensors)
    found = queries.targets(
        store,
        TargetQuery(family=family, lr=lr, names=pasted.names, shapes=pasted.shapes, step=step),
    )
    wanted = dict(found)
    result = multipliers(wanted, pasted.measured) if pasted.measured else Multipliers({})
    names = pasted.names or tuple(wanted)
    rows = tuple(_row(name, lr, wanted, pasted.measured, result) for name in names)
    return Matched(lr, step, found, rows, _by_hand(lr, rows) if pasted.measured else "")


def _step(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isdecimal() or len(text.strip()) > len(str(MAX_INTEGER)):
        raise InvalidInput(
            f"step: {quote_value(text)} is no step; a whole number such as 100, or nothing for the first, is allowed"
        )
    return int(text)


def _row(
    name: str, lr: float, wanted: dict[str, float], measured: dict[str, float], result: Multipliers
) -> Row:
    multiplier = result.values.get(name)
    notes = (
        ("unmeasured", result.unmeasured),
        ("noise", result.noisy),
        ("clamped", result.clamped),
    )
    return Row(
        name=name,
        target=wanted.get(name, math.nan),
        measured=measured.get(name, math.nan),
        multiplier=multiplier,
        rate=None if multiplier is None else lr * multiplier,
        note=", ".join(note for note, names in notes if name in names),
    )


def _by_hand(lr: float, rows: tuple[Row, ...]) -> str:
    rates = "\n".join(
        f"    {json.dumps(row.name)}: {row.rate:.6g}," for row in rows if row.rate is not None
    )
    return (
        f"rates = {{\n{rates}\n}}\n"
        "optimizer = torch.optim.AdamW(\n"
        f'    [{{"params": [p], "lr": rates.get(name, {lr:.6g})}} for name, p in model.named_parameters()]\n'
        ")\n"
    )


def router(store: Store, pages: Pages, door: PublicAddress) -> APIRouter:
    """The page /match. Short questions stand in the address; long ones are posted."""
    web = APIRouter(include_in_schema=False)

    def answer(
        request: Request, family: str, lr: str, tensors: str, recording: str, step: str
    ) -> HTMLResponse:
        names = [each.name for each in store.families(page_size=1000).items]
        found, trouble, status = None, "", 200
        try:
            if recording.strip() and not tensors.strip():
                tensors = _measured_by(store, recording.strip())
            if family:
                found = match(store, family, lr, tensors, step)
        except FlermError as error:
            trouble, status = str(error), status_of(error)
        return pages.page(
            "match.html",
            request,
            status=status,
            families=names,
            family=family,
            lr=lr,
            tensors=tensors,
            step=step,
            found=found,
            trouble=trouble,
            registry=door.address(request),
        )

    @web.get("/match")
    def form(
        request: Request,
        family: str = "",
        lr: str = "",
        tensors: str = "",
        recording: str = "",
        step: str = "",
    ) -> HTMLResponse:
        return answer(request, family, lr, tensors, recording, step)

    @web.post("/match")
    async def posted(request: Request) -> HTMLResponse:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_TEXT:
                raise InvalidInput(
                    f"tensors: more than {MAX_TEXT} bytes pasted; POST /api/v1/match takes JSON of any model"
                )
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True)
        except UnicodeDecodeError:
            raise InvalidInput("tensors: the text is not UTF-8; only UTF-8 is allowed") from None
        words = [
            fields.get(key, [""])[0] for key in ("family", "lr", "tensors", "recording", "step")
        ]
        return await run_in_threadpool(answer, request, *words)

    return web


def _measured_by(store: Store, recording_id: str) -> str:
    """A recording's first measurement, as one would paste it."""
    rows = load_selection(store, store.select(recording_id, max_points=2))
    if not len(rows):
        raise InvalidInput(
            f"recording: {quote_value(recording_id)} has no measurement yet; choose one that has"
        )
    return "\n".join(
        f"{name} {value:.6g}" for name, value in rows.at().items() if not is_depth_group(name)
    )
