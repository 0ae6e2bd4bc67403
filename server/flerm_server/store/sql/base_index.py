"""The shelf by which the core's rules choose the sources of targets in SQL.

Nothing here reads all recordings of a family: every question is answered from the index by (family, role, variant, kind,
status, learning rate), but for the counts and rates that an error names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import sqlalchemy as sa
from typing_extensions import override

from flerm_core.matching.base_selection import BaseRecordingIndex
from flerm_core.records.comparability import ComparabilityKey
from flerm_core.records.recording import Recording, same_lr
from flerm_server.store.sql.kinds import base_of
from flerm_server.store.sql.mappers import recording_from, select_recordings, status_at
from flerm_server.store.sql.read_rows import tags_of
from flerm_server.store.sql.tables import kinds, recording_tags, recordings

SAME_LR = 2e-9  # wider than `same_lr`, which has the last word
FEW, MANY = (
    4,
    256,
)  # learning rates of one statement: as a rule the first gap is all that is looked for


class SqlBaseIndex(BaseRecordingIndex):
    """A family's base recordings, within the caller's transaction at `now`."""

    def __init__(self, connection: sa.Connection, family_key: int, now: int) -> None:
        self._connection = connection
        self._now = now
        self._base = base_of(family_key)
        self._keys: dict[ComparabilityKey, int] = {}

    @override
    def statuses(self, lr: float | None = None) -> Counter[str]:
        status = status_at(self._now)
        query = (
            sa.select(recordings.c.lr, status, sa.func.count())
            .where(*self._base)
            .group_by(recordings.c.lr, status)
        )
        if lr is not None:
            query = query.where(recordings.c.lr.between(lr * (1 - SAME_LR), lr * (1 + SAME_LR)))
        counts: Counter[str] = Counter()
        for rate, name, count in self._connection.execute(query):
            if lr is None or same_lr(rate, lr):
                counts[name] += count
        return counts

    @override
    def tag_values(self, key: str, tags: Mapping[str, str]) -> set[str]:
        query = sa.select(recording_tags.c.value).distinct().join_from(recordings, recording_tags)
        query = query.where(*self._completed(tags), recording_tags.c.name == key)
        return set(self._connection.execute(query).scalars())

    @override
    def kinds(self, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        some = sa.select(recordings.c.key).where(
            *self._completed(tags), recordings.c.kind_key == kinds.c.key
        )
        query = sa.select(
            kinds.c.key, kinds.c.optimizer, kinds.c.settings, kinds.c.estimator
        ).where(some.exists())
        found = {
            ComparabilityKey(*content): key for key, *content in self._connection.execute(query)
        }
        self._keys |= found
        return set(found)

    @override
    def count(self, kind: ComparabilityKey, tags: Mapping[str, str]) -> int:
        query = sa.select(sa.func.count()).select_from(recordings).where(*self._of([kind], tags))
        return int(self._connection.execute(query).scalar_one())

    @override
    def rates(
        self,
        kinds: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        start: float,
        *,
        down: bool = False,
    ) -> Iterator[float]:
        rate, order = recordings.c.lr, recordings.c.lr.desc() if down else recordings.c.lr
        query = sa.select(rate).where(*self._of(kinds, tags)).order_by(order).limit(1)
        many, last = (
            FEW,
            self._connection.execute(query.where(rate < start if down else rate >= start)).scalar(),
        )
        while last is not None:
            # Each found by a step down the index from the one before, however many recordings share it.
            chain = sa.select(
                sa.literal(last, sa.Double).label("rate"), sa.literal(1).label("at")
            ).cte("chain", recursive=True)
            beyond = rate < chain.c.rate if down else rate > chain.c.rate
            step = sa.select(query.where(beyond).correlate(chain).scalar_subquery(), chain.c.at + 1)
            chain = chain.union_all(step.where(chain.c.at < many, chain.c.rate.is_not(None)))
            found = (
                self._connection.execute(sa.select(chain.c.rate).order_by(chain.c.at))
                .scalars()
                .all()
            )
            yield from (each for each in found[:-1] if each is not None)
            last, many = found[-1], MANY

    @override
    def newest(
        self,
        kinds: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        first: float,
        last: float,
    ) -> list[Recording]:
        age = sa.func.rank().over(
            partition_by=recordings.c.seed, order_by=recordings.c.created_at.desc()
        )
        where = *self._of(kinds, tags), recordings.c.lr.between(first, last)
        ranked = sa.select(recordings.c.key, age.label("age")).where(*where).subquery()
        query = (
            select_recordings(self._now)
            .join(ranked, ranked.c.key == recordings.c.key)
            .where(ranked.c.age == 1)
        )
        found = self._connection.execute(query).all()
        tagged = tags_of(self._connection, [row.key for row in found])
        return [recording_from(row, tagged.get(row.key, {})) for row in found]

    def _of(
        self, some: Collection[ComparabilityKey], tags: Mapping[str, str]
    ) -> tuple[sa.ColumnElement[bool], ...]:
        return *self._completed(tags), recordings.c.kind_key.in_(
            [self._keys[kind] for kind in some]
        )

    def _completed(self, tags: Mapping[str, str]) -> tuple[sa.ColumnElement[bool], ...]:
        tag = recording_tags.alias()  # beside the table itself, where a query asks for values
        tagged = (
            sa.select(tag.c.name)
            .where(
                tag.c.recording_key == recordings.c.key, tag.c.name == name, tag.c.value == value
            )
            .exists()
            for name, value in tags.items()
        )
        return *self._base, recordings.c.status == "completed", *tagged
