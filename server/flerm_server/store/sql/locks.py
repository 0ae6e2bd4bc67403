"""The one order in which transactions lock rows.

1. families, by key,
2. parameter lists, then kinds, each by digest,
3. recordings, by key,
4. the counts of a token's recordings.

A transaction skips what it does not need. Whoever starts, ends, tags or deletes recordings changes
their family's row too, by a trigger; so that row is locked before. Appends and leases change
recordings alone. Of the tokens' tables, a token is locked before its sessions.

SQLite has one writing transaction at a time, and locks no rows.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from flerm_server.store.sql.tables import families, recordings


def lock_families(
    connection: sa.Connection,
    *,
    keys: Collection[int] = (),
    names: Collection[str] = (),
    recording_ids: Collection[str] = (),
) -> None:
    """Locks families by their keys, their names and the ids of recordings in them.

    What is not there is not locked.
    """
    theirs = sa.select(recordings.c.family_key).where(recordings.c.id.in_(recording_ids))
    wanted = [
        condition
        for given, condition in (
            (keys, families.c.key.in_(keys)),
            (names, families.c.name.in_(names)),
            (recording_ids, families.c.key.in_(theirs)),
        )
        if given
    ]
    # As the trigger's update locks them: rows that refer to the family may be inserted meanwhile.
    query = sa.select(families.c.key).where(sa.or_(*wanted)).order_by(families.c.key)
    connection.execute(query.with_for_update(key_share=True))


def lock_recordings(connection: sa.Connection, ids: Collection[str]) -> None:
    """Locks those of the recordings that are there."""
    query = sa.select(recordings.c.key).where(recordings.c.id.in_(ids)).order_by(recordings.c.key)
    connection.execute(query.with_for_update())
