"""The matcher's page: for the tensors of a model it gives the learning rates and the code that
applies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from flerm_core.errors import FlermError, InvalidInput, NotFound, join_names
from flerm_core.matching.batch_change import BatchChange, can_follow
from flerm_core.matching.match import Multipliers
from flerm_core.matching.match_cautions import RunFacts
from flerm_core.matching.targets import Targets
from flerm_core.records.batch_size import batch_size_of
from flerm_core.records.checks import MAX_INTEGER, quote_value
from flerm_core.records.comparability import comparability_of
from flerm_core.records.queries import BestQuery, TargetQuery
from flerm_core.records.recording import Recording
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.problems import status_of
from flerm_server.http.web.family_view import recording_labels
from flerm_server.http.web.match_code import MatchArguments, rates_code
from flerm_server.http.web.model_tensors import ModelTensors, parse_tensors, recorded_tensors
from flerm_server.http.web.templating import Pages, PagesDep, PublicAddress, PublicAddressDep
from flerm_server.logs import public_sentence
from flerm_server.store import queries
from flerm_server.store.base_kinds import BaseKind, base_kinds
from flerm_server.store.interface import Store

MAX_TEXT = 4 << 20  # bytes
MAX_FAMILIES = 1000
MAX_OFFERED = 100  # recordings to choose from

web = APIRouter(include_in_schema=False)


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
    """The answer: the rate and step asked for, the targets, a row for each tensor, and the code.

    best: why that rate; empty: it was given. batch: what another batch changes. cautions: when
    not to trust the match. by_hand: code with the rates in it; empty: nothing measured was given.
    """

    lr: float
    best: str
    batch: str
    cautions: tuple[str, ...]
    step: int | None
    targets: Targets
    rows: tuple[Row, ...]
    loop: str
    trainer: str
    by_hand: str


@dataclass(frozen=True, slots=True)
class MatchForm:
    """The fields of the form, as text.

    base: which base recordings, a key of `base_kinds`; blank: those of the recording's own
    optimiser and estimator, else most.
    lr: base learning rate; blank: the best of these recordings.
    recording: the id of a recording of the big model, whose first measurement is matched.
    tensors: what `parse_tensors` reads, where there is no recording; blank: the base's own.
    step: the step at which the FSLRs were measured; blank: the first one measured.
    batch_size, total_steps: of the model's run, as in `BatchChange`; blank: as the base's.
    """

    family: str = ""
    base: str = ""
    lr: str = ""
    recording: str = ""
    tensors: str = ""
    step: str = ""
    batch_size: str = ""
    total_steps: str = ""


@dataclass(frozen=True, slots=True)
class MatchChoices:
    """What the form offers for a family.

    bases: names of base recordings to take targets from, with how many there are, most first.
    base: the one that counts. recordings: ids of recordings of bigger models with labels.
    batch_size, total_steps: of the base, where a run of another batch can follow it.
    """

    bases: tuple[tuple[str, int], ...] = ()
    base: str = ""
    recordings: tuple[tuple[str, str], ...] = ()
    batch_size: int | None = None
    total_steps: int | None = None


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
        found = parse_qs(body.decode(), keep_blank_values=True)
    except UnicodeDecodeError:
        raise InvalidInput("tensors: the text is not UTF-8; only UTF-8 is allowed") from None
    asked = MatchForm(**{each.name: found.get(each.name, [""])[0] for each in fields(MatchForm)})
    return await run_in_threadpool(_answer, store, pages, address, request, asked)


def _answer(
    store: Store, pages: Pages, address: PublicAddress, request: Request, asked: MatchForm
) -> HTMLResponse:
    families = store.family_names(page_size=MAX_FAMILIES)
    registry = address.url(request)
    found, choices, sentence, status = None, MatchChoices(), "", 200
    try:
        if asked.family:
            kinds = base_kinds(store, asked.family)
            choices = match_choices(store, asked, kinds)
            found = match(store, asked, kinds, registry)
    except FlermError as error:
        sentence, status = public_sentence(error), status_of(error)
    return pages.page(
        "match.html",
        request,
        status=status,
        families=families,
        asked=asked,
        choices=choices,
        found=found,
        error=sentence,
        registry=registry,
    )


def match_choices(store: Store, asked: MatchForm, kinds: Mapping[str, BaseKind]) -> MatchChoices:
    """What the form offers. Raises `NotFound` for an unknown family or recording."""
    overview = queries.family_overview(store, asked.family)
    bigger = overview.report.bigger
    offered = [
        at
        for at, each in enumerate(overview.runs.runs)
        if each.role == "scaled" or each.id in bigger
    ]
    chosen = [at for at, each in enumerate(overview.runs.runs) if each.id == asked.recording]
    offered = list(dict.fromkeys([*chosen, *offered]))[:MAX_OFFERED]
    base = _chosen_base(asked, kinds, _chosen_recording(store, asked))
    newest = kinds[base].recording if base else None
    follows = newest is not None and can_follow(newest.spec.optimizer, newest.spec.optimizer_config)
    return MatchChoices(
        bases=tuple((name, kind.count) for name, kind in kinds.items()),
        base=base,
        recordings=tuple(recording_labels(overview, offered).items()),
        batch_size=batch_size_of(newest.spec) if newest is not None and follows else None,
        total_steps=newest.final_step if newest is not None else None,
    )


def match(
    store: Store, asked: MatchForm, kinds: Mapping[str, BaseKind], registry: str
) -> MatchResult:
    """Matches the tensors of a recording, or those that were pasted.

    Raises `InvalidInput` for text that cannot be read, else as `queries.targets` and `queries.best`
    do.
    """
    recording = _chosen_recording(store, asked)
    if recording is not None and asked.tensors.strip():
        raise InvalidInput(
            "tensors: a recording of the big model is chosen too; choose none, or clear the text"
        )
    tensors = parse_tensors(asked.tensors)
    step = _parse_whole("step", asked.step, "step", 100, "the first")
    batch_size = _parse_whole("batch_size", asked.batch_size, "batch size", 256, "the base's")
    total_steps = _parse_whole("total_steps", asked.total_steps, "step", 10_000, "the base's")
    if recording is not None:
        tensors, first = recorded_tensors(store, asked.recording)
        step = first if step is None else step
    base = _chosen_base(asked, kinds, recording)
    spec = kinds[base].recording.spec if base else None
    rate, best = _parse_rate(asked.lr), ""
    if rate is None:
        pick = kinds[base].pick if base else {}
        answer = queries.best(store, BestQuery(family=asked.family, pick=pick))
        rate, best = answer.rate, answer.advice
    query = TargetQuery(
        family=asked.family,
        lr=rate,
        names=tensors.names,
        shapes=tensors.shapes,
        step=step,
        optimizer=spec.optimizer if spec else "",
        optimizer_config=spec.optimizer_config if spec else None,
        estimator=spec.estimator if spec else None,
    )
    if tensors.measured:
        found, result, change = queries.match(
            store, query, tensors.measured, batch_size=batch_size, total_steps=total_steps
        )
    else:
        found, result = queries.targets(store, query), Multipliers({})
        change = BatchChange.asked(found, batch_size, total_steps)
    own = None if recording is None else batch_size_of(recording.spec)
    rows = _rows(rate, found, tensors, result)
    rates = {row.name: row.rate for row in rows if row.rate is not None}
    facts = RunFacts(
        batch_size=own,
        steps=None if recording is None else recording.final_step,
        follows=change is not None,
        config={} if recording is None else recording.spec.config,
    )
    code = MatchArguments(asked.family, rate, registry, step, batch_size, total_steps)
    return MatchResult(
        lr=rate,
        best=best,
        batch="" if change is None else change.sentence,
        cautions=queries.match_cautions(store, found, facts),
        step=step,
        targets=found,
        rows=rows,
        loop=code.loop_code(),
        trainer=code.trainer_code(),
        by_hand=rates_code(found.optimizer or "AdamW", rate, rates, change)
        if tensors.measured
        else "",
    )


def _chosen_recording(store: Store, asked: MatchForm) -> Recording | None:
    identity = asked.recording.strip()
    return store.recording(identity) if identity else None


def _chosen_base(
    asked: MatchForm, kinds: Mapping[str, BaseKind], recording: Recording | None
) -> str:
    """The name of the base recordings that answer; empty: the family has none that are completed.

    Raises `NotFound` for a name that is not among `kinds`.
    """
    if asked.base and asked.base not in kinds:
        raise NotFound(
            f"base: {quote_value(asked.base)} fits no completed base recording of "
            f"{asked.family!r}; there is {join_names(kinds) or 'none'}"
        )
    key = None if recording is None else comparability_of(recording.spec)
    own = (name for name, kind in kinds.items() if kind.key == key)
    return asked.base or next(own, next(iter(kinds), ""))


def _parse_rate(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(
            f"lr: {quote_value(text)} is no number; a learning rate such as 4e-3 is allowed"
        ) from None


def _parse_whole(field: str, text: str, what: str, example: int, otherwise: str) -> int | None:
    """The whole number in `text`; None where there is none, which means `otherwise`."""
    text = text.strip()
    if not text:
        return None
    # The length first: `int` of many digits takes long.
    if not text.isdecimal() or len(text) > len(str(MAX_INTEGER)):
        raise InvalidInput(
            f"{field}: {quote_value(text)} is no {what}; "
            f"a whole number such as {example}, or nothing for {otherwise}, is allowed"
        )
    return int(text)


def _rows(
    lr: float, targets: Targets, tensors: ModelTensors, result: Multipliers
) -> tuple[Row, ...]:
    wanted = dict(targets)
    notes: dict[str, list[str]] = {}
    for note, names in (
        ("unmeasured", result.unmeasured),
        ("noise", result.noisy),
        ("clamped", result.clamped),
    ):
        for name in names:
            notes.setdefault(name, []).append(note)
    rows = []
    for name in tensors.names or wanted:
        multiplier = result.values.get(name)
        rows.append(
            Row(
                name=name,
                target=wanted.get(name, math.nan),
                measured=tensors.measured.get(name, math.nan),
                multiplier=multiplier,
                rate=None if multiplier is None else lr * multiplier,
                note=", ".join(notes.get(name, ())),
            )
        )
    return tuple(rows)
