"""Families and recordings: one by its name or id, and listings of them."""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Family, Recording
from flerm_server.store.interface import PAGE_SIZE, Page
from flerm_server.store.sql.compiled_statements import Driver, Prepared, PreparedIn
from flerm_server.store.sql.engine import timestamp_to_column
from flerm_server.store.sql.mappers import (
    columns_of,
    family_from_row,
    parameters_from_row,
    recordings_from_rows,
    select_recordings,
    status_at,
)
from flerm_server.store.sql.tables import families, parameter_lists, recording_tags, recordings
from flerm_server.store.unknown_recording import unknown_recording

LR_TOLERANCE = 1e-9  # as flerm_core.records.recording.same_lr
SUGGESTED_NAMES = 5  # in the error for an unknown family
COMPARED_NAMES = 1000  # families whose names are compared with that of an unknown one
MAX_KEY = 2**63 - 1

_FAMILY_OF = Prepared(
    sa.select(families.c.name)
    .join_from(recordings, families)
    .where(recordings.c.id == sa.bindparam("id"))
)
_TAGS = PreparedIn(
    sa.select(
        recording_tags.c.recording_key, recording_tags.c.name, recording_tags.c.value
    ).order_by(recording_tags.c.name),
    recording_tags.c.recording_key,
)


def encode_page_token(*sort_keys: object) -> str:
    """A page token: the sort keys of the page's last item, in a form that clients do not read."""
    return base64.urlsafe_b64encode("\n".join(map(str, sort_keys)).encode()).decode()


def decode_page_token(token: str, count: int) -> list[str]:
    """The `count` sort keys that `encode_page_token` packed. Raises `InvalidInput`."""
    try:
        found = base64.urlsafe_b64decode(token.encode("ascii")).decode().split("\n")
    except (binascii.Error, UnicodeError):
        found = []
    if len(found) != count:
        raise _invalid_page_token(token)
    return found


def _invalid_page_token(token: str) -> InvalidInput:
    return InvalidInput(
        f"page_token {token[:80]!r}: only the next_page_token of the page before is allowed"
    )


def team_filter(scope: str) -> list[sa.ColumnElement[bool]]:
    """The conditions that leave the family called `scope` and those of the team of that name.

    None for an empty `scope`.
    """
    if not scope:
        return []
    team = f"{scope}/"
    return [sa.or_(families.c.name == scope, sa.func.substr(families.c.name, 1, len(team)) == team)]


def list_families(
    connection: sa.Connection, prefix: str, page_size: int, page_token: str, within: str = ""
) -> Page[Family]:
    """See `Store.families`."""
    limit = page_size or PAGE_SIZE
    query = _by_name(sa.select(*columns_of(families)), within, limit + 1)
    if prefix:
        # Not LIKE, which ignores case on SQLite.
        query = query.where(sa.func.substr(families.c.name, 1, len(prefix)) == prefix)
    if page_token:
        query = query.where(families.c.name > decode_page_token(page_token, 1)[0])
    found = connection.execute(query).all()
    items = _with_counts(connection, found[:limit])
    return Page(tuple(items), encode_page_token(items[-1].name) if len(found) > limit else "")


def family_names(connection: sa.Connection, page_size: int, within: str) -> list[str]:
    """See `Store.family_names`."""
    query = _by_name(sa.select(families.c.name), within, page_size or PAGE_SIZE)
    return list(connection.execute(query).scalars())


def _by_name(query: sa.Select[Any], within: str, limit: int) -> sa.Select[Any]:
    return query.where(*team_filter(within)).order_by(families.c.name).limit(limit)


def one_family(connection: sa.Connection, name: str, within: str = "") -> Family:
    """See `Store.family`."""
    return _with_counts(connection, [family_record(connection, name, within)])[0]


def family_record(connection: sa.Connection, name: str, within: str = "") -> sa.Row[Any]:
    """The row of a family, of `columns_of`, without a count of its recordings.

    Raises as `Store.family` does.
    """
    query = sa.select(*columns_of(families)).where(families.c.name == name)
    found = connection.execute(query).one_or_none()
    if found is None:
        names = family_names(connection, COMPARED_NAMES, within)
        similar = difflib.get_close_matches(name, names, SUGGESTED_NAMES, 0.5)
        similar = similar or names[:SUGGESTED_NAMES]
        count = "there is one, " if len(names) == 1 else f"there are {len(names)}, for example "
        there = count + ", ".join(similar) if names else "this registry has none yet"
        raise NotFound(f"family {name!r} is not in this registry; {there}")
    return found


def family_key(connection: sa.Connection, name: str) -> int | None:
    """The key of the family called `name`; None where there is none."""
    key: int | None = connection.execute(
        sa.select(families.c.key).where(families.c.name == name)
    ).scalar_one_or_none()
    return key


def _with_counts(connection: sa.Connection, found: Sequence[sa.Row[Any]]) -> list[Family]:
    """Families from their rows, with the number and the learning rates of their recordings."""
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
        family_from_row(row, counts.get(row.key, 0), tuple(rates.get(row.key, ()))) for row in found
    ]


def list_recordings(
    connection: sa.Connection,
    filters: RecordingFilter,
    page_size: int,
    page_token: str,
    now: int,
    within: str = "",
) -> Page[Recording]:
    """See `Store.recordings`.

    now: the database's time in microseconds.
    """
    limit = page_size or PAGE_SIZE
    query = (
        select_recordings(now)
        .order_by(recordings.c.created_at.desc(), recordings.c.key.desc())
        .limit(limit + 1)
    )
    if filters.family:
        # By the family's key, with which an index begins. By the joined family's name, the query
        # planner reads all recordings in their order.
        key = family_key(connection, filters.family)
        if key is None:
            return Page(())
        query = query.where(recordings.c.family_key == key)
    query = query.where(*conditions(filters, now), *team_filter(within))
    if page_token:
        query = query.where(_before(page_token))
    found = connection.execute(query).all()
    rows = found[:limit]
    tags = tags_of(connection, [row.key for row in rows])
    items = tuple(recordings_from_rows(rows, tags))
    more = len(found) > limit
    return Page(items, encode_page_token(rows[-1].created_at, rows[-1].key) if more else "")


def _before(page_token: str) -> sa.ColumnElement[bool]:
    """The condition that leaves what follows the page of `page_token`, newest first."""
    texts = decode_page_token(page_token, 2)
    if not all(text.isdecimal() and len(text) <= len(str(MAX_KEY)) for text in texts):
        raise _invalid_page_token(page_token)
    created_at, key = map(int, texts)
    if max(created_at, key) > MAX_KEY:
        raise _invalid_page_token(page_token)
    order = sa.tuple_(recordings.c.created_at, recordings.c.key)
    return order < sa.tuple_(sa.literal(created_at), sa.literal(key))


def conditions(filters: RecordingFilter, now: int) -> list[sa.ColumnElement[bool]]:
    """The conditions of `filters`, but for that on the family."""
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


def tags_of(connection: sa.Connection, keys: Sequence[int]) -> dict[int, dict[str, str]]:
    """The tags of the recordings with these keys, by recording; those without tags are left out."""
    found: dict[int, dict[str, str]] = {}
    for key, name, value in _TAGS.all(Driver.of(connection), keys) if keys else ():
        found.setdefault(key, {})[name] = value
    return found


def one_recording(connection: sa.Connection, recording_id: str, now: int) -> tuple[int, Recording]:
    """The key of a recording, and the recording with its parameters. Raises `NotFound`."""
    row = connection.execute(
        select_recordings(now)
        .add_columns(parameter_lists.c.content)
        .join(parameter_lists)
        .where(recordings.c.id == recording_id)
    ).one_or_none()
    if row is None:
        raise unknown_recording(recording_id)
    parameters = parameters_from_row(row.content)
    return row.key, recordings_from_rows([row], tags_of(connection, [row.key]), parameters)[0]


def recordings_by_id(connection: sa.Connection, ids: Sequence[str], now: int) -> list[Recording]:
    """See `Store.recordings_by_id`."""
    rows = connection.execute(select_recordings(now).where(recordings.c.id.in_(ids))).all()
    tags = tags_of(connection, [row.key for row in rows])
    found = {each.spec.id: each for each in recordings_from_rows(rows, tags)}
    return [found[each] for each in ids if each in found]


def family_of(driver: Driver, recording_id: str) -> str:
    """The name of a recording's family. Raises `NotFound`."""
    found = _FAMILY_OF.all(driver, {"id": recording_id})
    if not found:
        raise unknown_recording(recording_id)
    name: str = found[0][0]
    return name
