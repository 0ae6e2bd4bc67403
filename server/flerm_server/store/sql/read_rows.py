"""Listings, and choosing and reading rows."""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from flerm_core.errors import DataLoss, InvalidInput, NotFound
from flerm_core.records.comparability import optimizer_key
from flerm_core.records.packing import unpack
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Family, ParameterList, Recording
from flerm_core.trajectory import thin
from flerm_core.tuning.best_lr import SweepRun
from flerm_server.store.interface import (
    BLOCK_BYTES,
    PAGE_SIZE,
    Page,
    Rows,
    Runs,
    Segment,
    Selection,
)
from flerm_server.store.sql.compiled_statements import Driver, Prepared, PreparedIn
from flerm_server.store.sql.engine import timestamp_to_column
from flerm_server.store.sql.mappers import (
    family_from,
    parameters_from,
    recording_from,
    select_recordings,
    status_at,
)
from flerm_server.store.sql.start_recording import NEVER, family_key
from flerm_server.store.sql.tables import (
    attempts,
    families,
    measurements,
    parameter_lists,
    recording_tags,
    recordings,
)

LR_TOLERANCE = 1e-9  # as flerm_core.records.recording.same_lr
NEAR_NAMES = 5
NAMES_CONSIDERED = 1000

# Step, loss, learning rate and tokens of a row on the wire: where one tensor is read they are more than its values.
ROW_BYTES = 40
CHOSEN = 512  # steps that one statement names

_BLOCK = sa.select(
    measurements.c.step,
    measurements.c.fslr,
    measurements.c.loss,
    measurements.c.learning_rate,
    measurements.c.tokens,
    measurements.c.extra,
).where(measurements.c.attempt_key == sa.bindparam("attempt"))
_FAMILY_OF = Prepared(
    sa.select(families.c.name)
    .join_from(recordings, families)
    .where(recordings.c.id == sa.bindparam("id"))
)
_RANGE = Prepared(
    _BLOCK.where(measurements.c.step.between(sa.bindparam("first"), sa.bindparam("last"))).order_by(
        measurements.c.step
    )
)
_CHOSEN = PreparedIn(_BLOCK.order_by(measurements.c.step), measurements.c.step)


def encode_token(*parts: object) -> str:
    """An opaque page token."""
    return base64.urlsafe_b64encode("\n".join(map(str, parts)).encode()).decode()


def decode_token(token: str, parts: int) -> list[str]:
    """What `encode_token` packed. Raises `InvalidInput` for anything else."""
    try:
        found = base64.urlsafe_b64decode(token.encode("ascii")).decode().split("\n")
    except (binascii.Error, UnicodeError):
        found = []
    if len(found) != parts:
        raise _bad_token(token)
    return found


def _bad_token(token: str) -> InvalidInput:
    return InvalidInput(
        f"page_token {token[:80]!r}: only the next_page_token of the page before is allowed"
    )


def team_filter(within: str) -> list[sa.ColumnElement[bool]]:
    """The conditions that keep families to one name, or one team; none for an empty `within`."""
    if not within:
        return []
    team = f"{within}/"
    return [
        sa.or_(families.c.name == within, sa.func.substr(families.c.name, 1, len(team)) == team)
    ]


def list_families(
    connection: sa.Connection, prefix: str, page_size: int, page_token: str, within: str = ""
) -> Page[Family]:
    """One page of families by name."""
    limit = page_size or PAGE_SIZE
    query = (
        sa.select(families).where(*team_filter(within)).order_by(families.c.name).limit(limit + 1)
    )
    if prefix:
        query = query.where(
            sa.func.substr(families.c.name, 1, len(prefix)) == prefix
        )  # LIKE ignores case on SQLite
    if page_token:
        query = query.where(families.c.name > decode_token(page_token, 1)[0])
    found = connection.execute(query).all()
    items = _with_counts(connection, found[:limit])
    return Page(tuple(items), encode_token(items[-1].name) if len(found) > limit else "")


def one_family(connection: sa.Connection, name: str, within: str = "") -> Family:
    """One family. Raises `NotFound` naming those that come near, of those `within`."""
    return _with_counts(connection, [family_record(connection, name, within)])[0]


def family_record(connection: sa.Connection, name: str, within: str = "") -> sa.Row[Any]:
    """What is kept of it, without counting its recordings. Raises as `one_family` does."""
    found = connection.execute(sa.select(families).where(families.c.name == name)).one_or_none()
    if found is None:
        query = (
            sa.select(families.c.name)
            .where(*team_filter(within))
            .order_by(families.c.name)
            .limit(NAMES_CONSIDERED)
        )
        names = connection.execute(query).scalars().all()
        near = difflib.get_close_matches(name, names, NEAR_NAMES, 0.5) or list(names[:NEAR_NAMES])
        there = (
            f"there are {len(names)}, for example {', '.join(near)}"
            if names
            else "this registry has none yet"
        )
        raise NotFound(f"family {name!r} is not in this registry; {there}")
    return found


def _with_counts(connection: sa.Connection, found: Sequence[sa.Row[Any]]) -> list[Family]:
    keys = [row.key for row in found]
    counts: dict[int, int] = {}
    rates: dict[int, list[float]] = {}
    for key, role, lr, count in connection.execute(
        sa.select(recordings.c.family_key, recordings.c.role, recordings.c.lr, sa.func.count())
        .where(recordings.c.family_key.in_(keys))
        .group_by(recordings.c.family_key, recordings.c.role, recordings.c.lr)
        .order_by(recordings.c.lr)
    ):
        counts[key] = counts.get(key, 0) + count
        if role == "base":
            rates.setdefault(key, []).append(lr)
    return [
        family_from(row, counts.get(row.key, 0), tuple(rates.get(row.key, ()))) for row in found
    ]


def list_recordings(
    connection: sa.Connection,
    filters: RecordingFilter,
    page_size: int,
    page_token: str,
    now: int,
    within: str = "",
) -> Page[Recording]:
    """One page of recordings, newest first."""
    limit = page_size or PAGE_SIZE
    order = sa.tuple_(recordings.c.created_at, recordings.c.key)
    query = (
        select_recordings(now)
        .order_by(recordings.c.created_at.desc(), recordings.c.key.desc())
        .limit(limit + 1)
    )
    if filters.family:
        # By its key, which an index begins with: by a joined name, the planner walks all recordings in their order.
        key = family_key(connection, filters.family)
        if key is None:
            return Page(())
        query = query.where(recordings.c.family_key == key)
    query = query.where(*conditions(filters, now), *team_filter(within))
    if page_token:
        created, number = decode_token(page_token, 2)
        digits = all(
            each.isdecimal() and len(each) <= len(str(NEVER)) for each in (created, number)
        )
        if not digits or max(int(created), int(number)) > NEVER:
            raise _bad_token(page_token)
        query = query.where(order < sa.tuple_(sa.literal(int(created)), sa.literal(int(number))))
    found = connection.execute(query).all()
    rows = found[:limit]
    tags = tags_of(connection, [row.key for row in rows])
    items = tuple(recording_from(row, tags.get(row.key, {})) for row in rows)
    return Page(
        items, encode_token(rows[-1].created_at, rows[-1].key) if len(found) > limit else ""
    )


def conditions(filters: RecordingFilter, now: int) -> list[sa.ColumnElement[bool]]:
    """All that `filters` asks, but for the family."""
    found = [
        column == value
        for column, value in (
            (recordings.c.role, filters.role),
            (recordings.c.variant, filters.variant),
            (recordings.c.optimizer, filters.optimizer),
            (status_at(now), filters.status),
        )
        if value
    ]
    if filters.lr_min is not None:
        found.append(recordings.c.lr >= filters.lr_min * (1 - LR_TOLERANCE))
    if filters.lr_max is not None:
        found.append(recordings.c.lr <= filters.lr_max * (1 + LR_TOLERANCE))
    if filters.created_after is not None:
        found.append(recordings.c.created_at >= timestamp_to_column(filters.created_after))
    if filters.created_before is not None:
        found.append(recordings.c.created_at < timestamp_to_column(filters.created_before))
    for name, value in filters.tags.items():
        tagged = sa.select(recording_tags.c.recording_key).where(
            recording_tags.c.name == name, recording_tags.c.value == value
        )
        found.append(recordings.c.key.in_(tagged))
    return found


def runs(connection: sa.Connection, filters: RecordingFilter, now: int) -> Runs:
    """See `Store.runs`. A few columns, without an object for each recording."""
    config = sa.cast(recordings.c.optimizer_config, sa.Text)
    columns = [
        recordings.c[name] for name in ("role", "variant", "optimizer", "lr", "seed", "final_loss")
    ]
    query: sa.Select[Any] = sa.select(*columns, status_at(now), config).where(
        *conditions(filters, now)
    )
    keys: dict[tuple[str, str], str] = {}
    found: Runs = {}
    query = query.where(recordings.c.family_key == family_key(connection, filters.family))
    for role, variant, optimizer, lr, seed, loss, status, text in connection.execute(query):
        key = keys.get((optimizer, text))
        if key is None:
            key = keys[optimizer, text] = optimizer_key(optimizer, json.loads(text))
        found.setdefault((role, variant, key), []).append(
            SweepRun(lr=lr, seed=seed, loss=loss, status=status)
        )
    return found


def tags_of(connection: sa.Connection, keys: Sequence[int]) -> dict[int, dict[str, str]]:
    """The tags of each recording that has any, by name."""
    found: dict[int, dict[str, str]] = {}
    query = (
        sa.select(recording_tags)
        .where(recording_tags.c.recording_key.in_(keys))
        .order_by(recording_tags.c.name)
    )
    for row in connection.execute(query):
        found.setdefault(row.recording_key, {})[row.name] = row.value
    return found


def one_recording(connection: sa.Connection, recording_id: str, now: int) -> tuple[int, Recording]:
    """The key and the recording with its parameters. Raises `NotFound`."""
    row = connection.execute(
        select_recordings(now)
        .add_columns(parameter_lists.c.content)
        .join(parameter_lists)
        .where(recordings.c.id == recording_id)
    ).one_or_none()
    if row is None:
        raise unknown_recording(recording_id)
    parameters: ParameterList = parameters_from(row.content)
    return row.key, recording_from(row, tags_of(connection, [row.key]).get(row.key, {}), parameters)


def family_of(driver: Driver, recording_id: str) -> str:
    """The name of a recording's family. Raises `NotFound`."""
    found = _FAMILY_OF.all(driver, {"id": recording_id})
    if not found:
        raise unknown_recording(recording_id)
    name: str = found[0][0]
    return name


def unknown_recording(recording_id: str) -> NotFound:
    """The answer to an id that is not there."""
    return NotFound(
        f"recording {recording_id[:80]!r} is not in this registry; list them by family to find its id"
    )


def select(
    connection: sa.Connection,
    recording_id: str,
    first: int | None,
    last: int | None,
    max_points: int,
    now: int,
) -> Selection:
    """The visible steps of a recording within [first, last], thinned to `max_points`."""
    key, recording = one_recording(connection, recording_id, now)
    lower, upper = (0 if first is None else first), (NEVER if last is None else last)
    parts: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    # Visible ranges of attempts do not overlap, and resume_at puts them in the order of their steps.
    query = sa.select(attempts.c.key, attempts.c.resume_at, attempts.c.visible_below).where(
        attempts.c.recording_key == key
    )
    for attempt in connection.execute(query.order_by(attempts.c.resume_at)).all():
        start, stop = max(attempt.resume_at, lower), min(attempt.visible_below - 1, upper)
        if start > stop:
            continue
        steps = connection.execute(
            sa.select(measurements.c.step)
            .where(
                measurements.c.attempt_key == attempt.key, measurements.c.step.between(start, stop)
            )
            .order_by(measurements.c.step)
        ).scalars()
        found = np.fromiter(steps, np.int64)
        if len(found):
            parts.append(found)
            segments.append(Segment(attempt.key, int(found[0]), int(found[-1])))
    chosen = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if max_points:
        chosen = chosen[thin(len(chosen), max_points)]
    return Selection(recording, chosen, tuple(segments))


def chunks(
    selection: Selection, columns: Sequence[int] | None
) -> Iterator[tuple[Segment, NDArray[np.int64]]]:
    """The selection's steps in blocks of at most BLOCK_BYTES, each of one segment."""
    width = selection.recording.parameter_count if columns is None else len(columns)
    height = max(1, BLOCK_BYTES // (4 * width + ROW_BYTES))
    for segment in selection.segments:
        steps = selection.steps[
            (selection.steps >= segment.first) & (selection.steps <= segment.last)
        ]
        for start in range(0, len(steps), height):
            yield segment, steps[start : start + height]


def read_block(
    driver: Driver,
    selection: Selection,
    segment: Segment,
    steps: NDArray[np.int64],
    columns: Sequence[int] | None,
) -> Rows:
    """The rows of one block. Raises `NotFound` when they have gone since they were chosen, `DataLoss` for damaged bytes."""
    wanted = steps.tolist()
    attempt = {"attempt": segment.attempt_key}
    # All measured rows in between: a range. Thinned: the steps themselves, or one would read what is thrown away.
    if len(selection.steps) < selection.recording.rows and wanted[-1] - wanted[0] >= len(wanted):
        parts = (wanted[at : at + CHOSEN] for at in range(0, len(wanted), CHOSEN))
        found = [row for part in parts for row in _CHOSEN.all(driver, part, attempt)]
    else:
        found = _RANGE.all(driver, attempt | {"first": wanted[0], "last": wanted[-1]})
        if len(found) > len(wanted):  # some came in between after the steps were chosen
            chosen = set(wanted)
            found = [row for row in found if row[0] in chosen]
    recording, width = selection.recording.spec.id, selection.recording.parameter_count
    if len(found) != len(wanted):
        raise NotFound(f"recording {recording} was deleted while it was read")
    _, fslr, losses, rates, tokens, extras = zip(*found, strict=True)
    data = b"".join(fslr)
    if len(data) != 4 * width * len(found):
        raise DataLoss(
            f"recording {recording}: rows from step {steps[0]} on do not have {width} values each"
        )
    values = unpack(data, width).reshape(len(found), width)
    return Rows(
        steps=steps,
        values=values if columns is None else values[:, list(columns)],
        losses=np.array(losses, np.float64),  # None becomes NaN
        learning_rates=np.array(rates, np.float64),
        tokens=np.array([-1 if count is None else count for count in tokens], np.int64),
        extras=extras,
    )
