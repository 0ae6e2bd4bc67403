"""The kinds of recordings, interned."""

from __future__ import annotations

import json

import sqlalchemy as sa

from flerm_core.records.comparability import ComparabilityKey
from flerm_core.records.recording import EstimatorSettings, content_digest
from flerm_server.store.sql.engine import insert_new
from flerm_server.store.sql.tables import kinds, recordings


def intern_kind(connection: sa.Connection, kind: ComparabilityKey) -> int:
    """The key of this kind."""
    digest = content_digest([kind.optimizer, kind.settings, kind.estimator])
    query = sa.select(kinds.c.key).where(kinds.c.digest == digest)
    key: int | None = connection.execute(query).scalar_one_or_none()
    if key is None:
        values = {
            "optimizer": kind.optimizer,
            "settings": kind.settings,
            "estimator": kind.estimator,
        }
        key = insert_new(connection, kinds, values | {"digest": digest})
    return key if key is not None else int(connection.execute(query).scalar_one())


def has_unkeyed(connection: sa.Connection, family_key: int) -> bool:
    """Whether base recordings of older servers are there, which have no kind yet."""
    query = (
        sa.select(recordings.c.key)
        .where(*base_of(family_key), recordings.c.kind_key.is_(None))
        .limit(1)
    )
    return connection.execute(query).first() is not None


def backfill_kinds(connection: sa.Connection, family_key: int) -> None:
    """Gives those their kinds; another server may have done so meanwhile."""
    texts = (sa.cast(recordings.c[name], sa.Text) for name in ("optimizer_config", "estimator"))
    where = *base_of(family_key), recordings.c.kind_key.is_(None)
    query = (
        sa.select(recordings.c.key, recordings.c.optimizer, *texts)
        .where(*where)
        .order_by(recordings.c.key)
    )
    found: dict[tuple[str, ...], int] = {}
    changes = []
    for key, *content in connection.execute(query):
        name, config, estimator = content
        kind = found.get(tuple(content))
        if kind is None:
            settings = EstimatorSettings(**json.loads(estimator))
            kind = found[tuple(content)] = intern_kind(
                connection, ComparabilityKey.of(name, json.loads(config), settings)
            )
        changes.append({"at": key, "kind": kind})
    change = (
        recordings.update()
        .where(recordings.c.key == sa.bindparam("at"))
        .values(kind_key=sa.bindparam("kind"))
    )
    if changes:
        connection.execute(change, changes)


def base_of(family_key: int) -> tuple[sa.ColumnElement[bool], ...]:
    """The conditions that keep recordings to a family's base ones."""
    return (
        recordings.c.family_key == family_key,
        recordings.c.role == "base",
        recordings.c.variant == "plain",
    )
