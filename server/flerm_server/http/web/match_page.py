"""The matcher's page: it takes the tensors of a model, and gives their learning rates and the code
that applies them."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import FlermError, InvalidInput
from flerm_core.matching.match import Multipliers
from flerm_core.matching.targets import Targets
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.checks import MAX_INTEGER, quote_value
from flerm_core.records.queries import BestQuery, TargetQuery, TrajectoryQuery
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.problems import status_of
from flerm_server.http.web.templating import Pages, PagesDep, PublicAddress, PublicAddressDep
from flerm_server.store import queries
from flerm_server.store.interface import Store

MAX_TEXT = 4 << 20  # bytes

web = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class PastedTensors:
    """What was pasted.

    measured: FSLRs by name, NaN where unmeasured; empty: none was given.
    shapes: one for each name; empty: not every tensor has one.
    """

    names: tuple[str, ...]
    measured: dict[str, float]
    shapes: tuple[tuple[int, ...], ...]


def parse(text: str) -> PastedTensors:
    """Reads lines of `name`, `name FSLR` or `name [8, 8]`, or a JSON object of names to either.

    Raises `InvalidInput` naming the line.
    """
    entries = _json_entries(text) if text.lstrip().startswith("{") else _line_entries(text)
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
                f"{where} has {quote_value(value)}; "
                "a measured FSLR, a shape such as [64, 32] or nothing is allowed"
            )
    if measured:
        measured = {name: measured.get(name, math.nan) for name in names}
    complete = len(shapes) == len(names)
    return PastedTensors(
        tuple(names), measured, tuple(shapes[name] for name in names) if complete else ()
    )


Entry = tuple[str, str, object]  # where it stands (for errors), name, value


def _json_entries(text: str) -> list[Entry]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"tensors: the text begins with {{ but is no JSON ({error})") from None
    return [(f"tensors: {quote_value(name)}", str(name), value) for name, value in content.items()]


def _line_entries(text: str) -> list[Entry]:
    return [_line(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]


def _line(at: int, text: str) -> Entry:
    """Line number `at`. A name may be quoted and end with a colon; a shape may be torch's."""
    text = text.strip()
    name, _, rest = text.partition(" " if " " in text else "\t")
    name, rest = name.rstrip(":,=").strip("\"'"), rest.strip().lstrip(":=").strip().rstrip(",")
    where = f"tensors: line {at}, {quote_value(name)},"
    if not rest:
        return where, name, None
    value = rest.replace("(", "[").replace(",)", "]").replace(")", "]").removeprefix("torch.Size")
    try:
        return where, name, json.loads(value)
    except (ValueError, RecursionError):
        return where, name, None if rest.lower() == "nan" else rest


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor. NaN: unmeasured; None: not asked for."""

    name: str
    target: float
    measured: float
    multiplier: float | None
    rate: float | None
    note: str


@dataclass(frozen=True, slots=True)
class MatchResult:
    """The answer: the rate and step asked for, the targets, a row for each tensor, and code with
    the rates in it (empty: nothing measured was given)."""

    lr: float
    step: int | None
    targets: Targets
    rows: tuple[Row, ...]
    code: str


@dataclass(frozen=True, slots=True)
class MatchForm:
    """The fields of the form, as text.

    lr: base learning rate; blank: the family's best.
    tensors: what `parse` reads; blank: the base's own.
    recording: the id of a recording whose first measurement fills `tensors`.
    step: the step at which the FSLRs were measured; blank: the first one measured.
    """

    family: str = ""
    lr: str = ""
    tensors: str = ""
    recording: str = ""
    step: str = ""


@web.get("/match")
def form(
    store: StoreDep,
    pages: PagesDep,
    address: PublicAddressDep,
    request: Request,
    asked: Annotated[MatchForm, Depends()],
) -> HTMLResponse:
    """The matcher's page, filled in from the address."""
    return _answer(store, pages, address, request, asked)


@web.post("/match")
async def posted(
    store: StoreDep, pages: PagesDep, address: PublicAddressDep, request: Request
) -> HTMLResponse:
    """The matcher's page, filled in from a posted form: a model is too long for an address."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_TEXT:
            raise InvalidInput(
                f"tensors: more than {MAX_TEXT} bytes pasted; "
                "POST /api/v1/match takes JSON of any model"
            )
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True)
    except UnicodeDecodeError:
        raise InvalidInput("tensors: the text is not UTF-8; only UTF-8 is allowed") from None
    names = ("family", "lr", "tensors", "recording", "step")
    asked = MatchForm(**{name: fields.get(name, [""])[0] for name in names})
    return await run_in_threadpool(_answer, store, pages, address, request, asked)


def _answer(
    store: Store, pages: Pages, address: PublicAddress, request: Request, asked: MatchForm
) -> HTMLResponse:
    families = [each.name for each in store.families(page_size=1000).items]
    found, tensors, sentence, status = None, asked.tensors, "", 200
    try:
        if asked.recording.strip() and not tensors.strip():
            tensors = _first_measurement(store, asked.recording.strip())
        if asked.family:
            found = match(store, asked.family, asked.lr, tensors, asked.step)
    except FlermError as error:
        sentence, status = str(error), status_of(error)
    return pages.page(
        "match.html",
        request,
        status=status,
        families=families,
        family=asked.family,
        lr=asked.lr,
        tensors=tensors,
        step=asked.step,
        found=found,
        error=sentence,
        registry=address.url(request),
    )


def match(store: Store, family: str, lr: str, tensors: str, step: str = "") -> MatchResult:
    """Matches the tensors that were pasted. The texts are those of a `MatchForm`.

    Raises `InvalidInput` for text that cannot be read, else as `queries.targets` and `queries.best`
    do.
    """
    at_step = _parse_step(step)
    rate = _parse_rate(lr)
    if rate is None:
        rate = queries.best(store, BestQuery(family=family)).lr
    pasted = parse(tensors)
    query = TargetQuery(
        family=family, lr=rate, names=pasted.names, shapes=pasted.shapes, step=at_step
    )
    if pasted.measured:
        found, result = queries.match(store, query, pasted.measured)
    else:
        found, result = queries.targets(store, query), Multipliers({})
    wanted = dict(found)
    notes = _notes(result)
    rows = tuple(
        _row(name, rate, wanted, pasted.measured, result.values.get(name), notes)
        for name in pasted.names or wanted
    )
    return MatchResult(rate, at_step, found, rows, _code(rate, rows) if pasted.measured else "")


def _parse_rate(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"lr: {quote_value(text)} is no number; a learning rate such as 4e-3 is allowed"
        ) from None


def _parse_step(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    # The length first: `int` of many digits takes long.
    if not text.isdecimal() or len(text) > len(str(MAX_INTEGER)):
        raise InvalidInput(
            f"step: {quote_value(text)} is no step; "
            "a whole number such as 100, or nothing for the first, is allowed"
        )
    return int(text)


def _notes(result: Multipliers) -> dict[str, list[str]]:
    """What is to be said of tensors, by name."""
    found: dict[str, list[str]] = {}
    for note, names in (
        ("unmeasured", result.unmeasured),
        ("noise", result.noisy),
        ("clamped", result.clamped),
    ):
        for name in names:
            found.setdefault(name, []).append(note)
    return found


def _row(
    name: str,
    lr: float,
    wanted: dict[str, float],
    measured: dict[str, float],
    multiplier: float | None,
    notes: dict[str, list[str]],
) -> Row:
    return Row(
        name=name,
        target=wanted.get(name, math.nan),
        measured=measured.get(name, math.nan),
        multiplier=multiplier,
        rate=None if multiplier is None else lr * multiplier,
        note=", ".join(notes.get(name, ())),
    )


def _code(lr: float, rows: tuple[Row, ...]) -> str:
    """Python code that builds an optimiser with the rates."""
    rates = "\n".join(
        f"    {json.dumps(row.name)}: {row.rate:.6g}," for row in rows if row.rate is not None
    )
    return (
        f"rates = {{\n{rates}\n}}\n"
        "optimizer = torch.optim.AdamW(\n"
        f'    [{{"params": [p], "lr": rates.get(name, {lr:.6g})}} '
        "for name, p in model.named_parameters()]\n"
        ")\n"
    )


def _first_measurement(store: Store, recording_id: str) -> str:
    """A recording's first measurement, as one would paste it."""
    ends = queries.trajectory(store, TrajectoryQuery(recording_id=recording_id, max_points=2))
    if not len(ends):
        raise InvalidInput(
            f"recording: {quote_value(recording_id)} has no measurement yet; choose one that has"
        )
    return "\n".join(
        f"{name} {value:.6g}" for name, value in ends.at().items() if not is_depth_group(name)
    )
