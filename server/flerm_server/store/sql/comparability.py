"""Comparability keys, interned: recordings with one `ComparabilityKey` share one row of the table.

The table is called `kinds` in the database. A family may have 100,000 base recordings, and nearly
always a handful of keys. With the number of its key in each recording, an index answers "which
learning rates were recorded with this key?" without reading the recordings themselves.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

from flerm_core.records.comparability import ComparabilityKey
from flerm_core.records.recording import EstimatorSettings, content_digest
from flerm_server.store.sql.engine import insert_new
from flerm_server.store.sql.tables import comparability_keys, recordings


def intern(connection: sa.Connection, key: ComparabilityKey) -> int:
    """The number of this key's row, which is made when it is new.

    A transaction that interns several keys does so in the order of their `_digest`.
    """
    digest = digest_of(key)
    query = sa.select(comparability_keys.c.key).where(comparability_keys.c.digest == digest)
    number: int | None = connection.execute(query).scalar_one_or_none()
    if number is None:
        values = {
            "digest": digest,
            "optimizer": key.optimizer,
            "settings": key.settings,
            "estimator": key.estimator,
        }
        number = insert_new(connection, comparability_keys, values)
    return number if number is not None else int(connection.execute(query).scalar_one())


def digest_of(key: ComparabilityKey) -> str:
    """What a kind is stored once by."""
    return content_digest([key.optimizer, key.settings, key.estimator])


def has_unkeyed(connection: sa.Connection, family_key: int) -> bool:
    """Whether the family has base recordings without a key, from servers of an older schema."""
    query = (
        sa.select(recordings.c.key)
        .where(*base_of(family_key), recordings.c.kind_key.is_(None))
        .limit(1)
    )
    return connection.execute(query).first() is not None


def backfill(connection: sa.Connection, family_key: int) -> None:
    """Gives the recordings that `has_unkeyed` finds their keys.

    Another server may do so at the same time.
    """
    texts = (sa.cast(recordings.c[name], sa.Text) for name in ("optimizer_config", "estimator"))
    query = (
        sa.select(recordings.c.key, recordings.c.optimizer, *texts)
        .where(*base_of(family_key), recordings.c.kind_key.is_(None))
        .order_by(recordings.c.key)
    )
    found = [
        (recording, (optimizer, config, estimator))
        for recording, optimizer, config, estimator in connection.execute(query)
    ]
    keys = {content: _key_of(*content) for content in dict.fromkeys(each for _, each in found)}
    # A key that is new locks its row until the commit. Servers that backfill two families, whose
    # recordings have the same keys in another order, would wait for each other for ever.
    numbers = {
        content: intern(connection, keys[content])
        for content in sorted(keys, key=lambda each: digest_of(keys[each]))
    }
    changes = [{"recording": recording, "number": numbers[content]} for recording, content in found]
    if changes:
        change = (
            recordings.update()
            .where(recordings.c.key == sa.bindparam("recording"))
            .values(kind_key=sa.bindparam("number"))
        )
        connection.execute(change, changes)


def _key_of(optimizer: str, config: str, estimator: str) -> ComparabilityKey:
    """The key of a recording whose columns hold these texts."""
    settings = EstimatorSettings(**json.loads(estimator))
    return ComparabilityKey.of(optimizer, json.loads(config), settings)


def base_of(family_key: int) -> tuple[sa.ColumnElement[bool], ...]:
    """The conditions that leave the base recordings of a family: role base, variant plain."""
    return (
        recordings.c.family_key == family_key,
        recordings.c.role == "base",
        recordings.c.variant == "plain",
    )
