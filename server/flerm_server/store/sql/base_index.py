"""A family's base recordings in SQL, as the core's rules for the sources of targets ask for them.

A family may have 100,000 base recordings, and a query for targets needs a few of them. So no method
here reads them all. Each is answered from the index over (family, role, variant, comparability key,
status, learning rate); only `statuses`, which an error message needs, counts them one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import sqlalchemy as sa
from typing_extensions import override

from flerm_core.matching.base_selection import BaseRecordingIndex
from flerm_core.records.comparability import ComparabilityKey
from flerm_core.records.recording import Recording, same_lr
from flerm_server.store.sql.comparability import base_of
from flerm_server.store.sql.listings import tags_of
from flerm_server.store.sql.mappers import recordings_from_rows, select_recordings, status_at
from flerm_server.store.sql.tables import comparability_keys, recording_tags, recordings

LR_TOLERANCE = 2e-9  # wider than that of `same_lr`, which then decides
# How many learning rates one statement looks up. Few at first: the rules as a rule stop at the
# first rate that is not the same as the one before.
FIRST_RATES, MORE_RATES = 4, 256


class SqlBaseIndex(BaseRecordingIndex):
    """The base recordings of one family, as one transaction sees them.

    connection: of that transaction.
    family_key: the family's key.
    now: the database's time in microseconds, which decides what running recordings have lost their
        lease.
    """

    def __init__(self, connection: sa.Connection, family_key: int, now: int) -> None:
        self._connection = connection
        self._now = now
        self._base = base_of(family_key)
        self._numbers: dict[ComparabilityKey, int] = {}

    @override
    def statuses(self, lr: float | None = None) -> Counter[str]:
        status = status_at(self._now)
        query = (
            sa.select(recordings.c.lr, status, sa.func.count())
            .where(*self._base)
            .group_by(recordings.c.lr, status)
        )
        if lr is not None:
            low, high = lr * (1 - LR_TOLERANCE), lr * (1 + LR_TOLERANCE)
            query = query.where(recordings.c.lr.between(low, high))
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
    def keys(self, tags: Mapping[str, str]) -> set[ComparabilityKey]:
        # For each key of the registry, whether the family has such a recording: keys are few.
        recorded = sa.select(recordings.c.key).where(
            *self._completed(tags), recordings.c.kind_key == comparability_keys.c.key
        )
        query = sa.select(
            comparability_keys.c.key,
            comparability_keys.c.optimizer,
            comparability_keys.c.settings,
            comparability_keys.c.estimator,
        ).where(recorded.exists())
        found = {
            ComparabilityKey(*content): number
            for number, *content in self._connection.execute(query)
        }
        self._numbers |= found
        return set(found)

    @override
    def count(self, key: ComparabilityKey, tags: Mapping[str, str]) -> int:
        query = sa.select(sa.func.count()).select_from(recordings)
        return int(self._connection.execute(query.where(*self._of([key], tags))).scalar_one())

    @override
    def rates(
        self,
        keys: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        start: float,
        *,
        down: bool = False,
    ) -> Iterator[float]:
        rate = recordings.c.lr
        order = rate.desc() if down else rate
        nearest = sa.select(rate).where(*self._of(keys, tags)).order_by(order).limit(1)
        last = self._connection.execute(
            nearest.where(rate < start if down else rate >= start)
        ).scalar()
        count = FIRST_RATES
        while last is not None:
            # SELECT DISTINCT would read every recording of the range, thousands of which may share
            # a learning rate. This recursion instead goes from one rate to the next with one look
            # into the index each: it starts with `last`, and each row asks for the nearest rate
            # beyond the row before. Where there is none the rate is NULL, and the recursion ends.
            chain = sa.select(
                sa.literal(last, sa.Double).label("rate"), sa.literal(1).label("position")
            ).cte("chain", recursive=True)
            beyond = rate < chain.c.rate if down else rate > chain.c.rate
            following = sa.select(
                nearest.where(beyond).correlate(chain).scalar_subquery(), chain.c.position + 1
            ).where(chain.c.position < count, chain.c.rate.is_not(None))
            chain = chain.union_all(following)
            found = self._connection.execute(
                sa.select(chain.c.rate).order_by(chain.c.position)
            ).scalars()
            *rates, last = found.all()  # `last` begins the next statement, or is NULL
            yield from rates
            count = MORE_RATES

    @override
    def newest_per_seed(
        self,
        keys: Collection[ComparabilityKey],
        tags: Mapping[str, str],
        lr_min: float,
        lr_max: float,
    ) -> list[Recording]:
        age = sa.func.rank().over(
            partition_by=recordings.c.seed, order_by=recordings.c.created_at.desc()
        )
        where = *self._of(keys, tags), recordings.c.lr.between(lr_min, lr_max)
        ranked = sa.select(recordings.c.key, age.label("age")).where(*where).subquery()
        query = (
            select_recordings(self._now)
            .join(ranked, ranked.c.key == recordings.c.key)
            .where(ranked.c.age == 1)
        )
        found = self._connection.execute(query).all()
        return recordings_from_rows(found, tags_of(self._connection, [row.key for row in found]))

    def _of(
        self, keys: Collection[ComparabilityKey], tags: Mapping[str, str]
    ) -> tuple[sa.ColumnElement[bool], ...]:
        """The conditions that leave completed base recordings with one of `keys` and all `tags`."""
        numbers = [self._numbers[key] for key in keys]
        return *self._completed(tags), recordings.c.kind_key.in_(numbers)

    def _completed(self, tags: Mapping[str, str]) -> tuple[sa.ColumnElement[bool], ...]:
        """The conditions that leave completed base recordings with all `tags`."""
        # An alias, for `tag_values` has the table itself in its query.
        tag = recording_tags.alias()
        tagged = (
            sa.select(tag.c.name)
            .where(
                tag.c.recording_key == recordings.c.key, tag.c.name == name, tag.c.value == value
            )
            .exists()
            for name, value in tags.items()
        )
        return *self._base, recordings.c.status == "completed", *tagged
