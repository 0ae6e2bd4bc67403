"""Opening recordings and attempts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from flerm_core.errors import AlreadyExists, Refused
from flerm_core.records.comparability import comparability_of, refuse_other_recording
from flerm_core.records.recording import Attempt, Ending, ParameterList, RecordingSpec, in_order
from flerm_server.store.interface import Started
from flerm_server.store.quotas import UNLIMITED, Quotas
from flerm_server.store.sql import comparability
from flerm_server.store.sql.client_clock import on_database_clock
from flerm_server.store.sql.engine import insert_new, timestamp_from_column
from flerm_server.store.sql.listings import family_key
from flerm_server.store.sql.mappers import (
    ending_to_row,
    parameters_to_row,
    recordings_from_rows,
    select_recordings,
    spec_to_row,
)
from flerm_server.store.sql.tables import (
    NEVER,
    attempts,
    families,
    measurements,
    parameter_lists,
    recording_counts,
    recording_tags,
    recordings,
)

FIRST = 1


@dataclass(frozen=True, slots=True)
class StartRecording:
    """`Store.start` within one transaction.

    connection: of a writing transaction.
    spec, attempt, created_by, quotas: as `Store.start` has them.
    now: the database's time in microseconds.
    lease_until: when the lease of the new attempt ends, in microseconds.
    """

    connection: sa.Connection
    spec: RecordingSpec
    attempt: Attempt | None
    created_by: str
    now: int
    lease_until: int
    quotas: Quotas = UNLIMITED

    def execute(self) -> Started:
        """Opens the recording or the attempt, or finds what was opened before."""
        while (key := self._lock_same_recording()) is None:
            key = self._insert_recording()
            if key is not None:
                self._insert_attempt(key, FIRST)
                return Started(self.spec.id, FIRST, True)
        if self.attempt is None or self.attempt.id == self.spec.id:
            return Started(self.spec.id, FIRST, False)
        known = self.connection.execute(
            sa.select(attempts).where(attempts.c.recording_key == key)
        ).all()
        for other in known:
            if other.id == self.attempt.id:
                if other.resume_at != self.attempt.resume_at:
                    raise AlreadyExists(
                        f"attempt {other.id} of recording {self.spec.id} has resume_at "
                        f"{other.resume_at}, not {self.attempt.resume_at}"
                    )
                return Started(self.spec.id, other.number, False)
        self.quotas.check(
            "attempts_per_recording",
            len(known),
            f"recording {self.spec.id}",
            "attempts",
            "go on in a new recording",
        )
        number = max(other.number for other in known) + 1
        self._insert_attempt(key, number)
        recompute_visibility(self.connection, key, self.now, self.lease_until)
        return Started(self.spec.id, number, True)

    def _lock_same_recording(self) -> int | None:
        """Locks the recording with this id, so that its attempts open one after another.

        Its key; None where there is none. Raises `AlreadyExists` when another one has the id.
        """
        row = self.connection.execute(
            select_recordings(self.now)
            .add_columns(parameter_lists.c.digest)
            .join(parameter_lists)
            .where(recordings.c.id == self.spec.id)
            .with_for_update(of=recordings)
        ).one_or_none()
        if row is None:
            return None
        stored = recordings_from_rows([row], {})[0].spec
        family = self.spec.family
        if stored.family != family and family_key(self.connection, family) is None:
            # The family was renamed: a client that knows the old name means this recording.
            stored = replace(stored, family=family)
        refuse_other_recording(stored, self.spec, stored_digest=row.digest)
        return int(row.key)

    def _insert_recording(self) -> int | None:
        """The key of the new recording; None when another transaction has made it."""
        self._check_quota()
        values: dict[str, Any] = spec_to_row(self.spec) | {
            "family_key": ensure_family(
                self.connection, self.spec.family, self.now, self.created_by, self.quotas
            ),
            "parameters_key": intern_parameters(self.connection, self.spec.parameters),
            "kind_key": comparability.intern(self.connection, comparability_of(self.spec)),
            "status": "running",
            "attempt": FIRST,
            "rows": 0,
            "first_step": 0,
            "last_step": 0,
            # A spool or an archive may arrive long after its run, which is not newer for that.
            "created_at": min(self._started_at(), self.now),
            "updated_at": self.now,
            "lease_until": self.lease_until,
            "created_by": self.created_by,
        }
        key = insert_new(self.connection, recordings, values)
        if key is not None and self.spec.tags:
            tags = [
                {"recording_key": key, "name": name, "value": value}
                for name, value in self.spec.tags.items()
            ]
            self.connection.execute(recording_tags.insert(), tags)
        return key

    def _check_quota(self) -> None:
        """Raises `LimitExceeded` where the creator has as many recordings as it may have."""
        if not self.quotas.recordings_per_token:
            return
        theirs = sa.select(recording_counts.c.recordings).where(
            recording_counts.c.created_by == self.created_by
        )
        self.quotas.check(
            "recordings_per_token",
            self.connection.execute(theirs).scalar() or 0,
            f"token {self.created_by}",
            "recordings",
            "delete old ones, or ask for another token",
        )

    def _insert_attempt(self, recording_key: int, number: int) -> None:
        attempt = self.attempt
        self.connection.execute(
            attempts.insert().values(
                recording_key=recording_key,
                id=attempt.id if attempt else self.spec.id,
                number=number,
                resume_at=attempt.resume_at if attempt else 0,
                started_at=self._started_at(),
                after_id=attempt.after if attempt else "",
                status="running",
                world_size=self.spec.world_size,
                versions=dict(self.spec.versions),
                visible_below=NEVER,
                last_step=-1,
                created_by=self.created_by,
            )
        )

    def _started_at(self) -> int:
        """When the attempt began, on the database's clock."""
        if self.attempt is None:
            return self.now
        return on_database_clock(self.attempt.started_at, self.attempt.sent_at, self.now)


def ensure_family(
    connection: sa.Connection, name: str, now: int, created_by: str, quotas: Quotas
) -> int:
    """The key of the family called `name`, which is made when it is new.

    Raises `LimitExceeded` for a new one beyond `quotas`.
    """
    key = family_key(connection, name)
    if key is None:
        if quotas.families_per_token:
            theirs = sa.select(sa.func.count()).select_from(families)
            quotas.check(
                "families_per_token",
                connection.execute(theirs.where(families.c.created_by == created_by)).scalar_one(),
                f"token {created_by}",
                "families",
                "use one that is there, or ask for another token",
            )
        values = {
            "name": name,
            "description": "",
            "blocks": [],
            "created_at": now,
            "updated_at": now,
            "created_by": created_by,
        }
        key = insert_new(connection, families, values)
    if key is None:
        key = family_key(connection, name)  # another transaction made it
    assert key is not None
    return key


def intern_parameters(connection: sa.Connection, parameters: ParameterList) -> int:
    """The key of the row with this parameter list, which is made when it is new.

    The row is locked, so that it is there until a recording refers to it: `flerm db prune` removes
    lists that no recording has.
    """
    query = (
        sa.select(parameter_lists.c.key)
        .where(parameter_lists.c.digest == parameters.digest)
        .with_for_update(read=True, key_share=True)
    )
    while True:
        key: int | None = connection.execute(query).scalar_one_or_none()
        if key is None:
            content = {
                "digest": parameters.digest,
                "count": len(parameters),
                "content": parameters_to_row(parameters),
            }
            key = insert_new(connection, parameter_lists, content)
        if key is not None:
            return key


def recompute_visibility(
    connection: sa.Connection, recording_key: int, now: int, lease_until: int
) -> None:
    """Updates what the order of a recording's attempts decides.

    That is `visible_below` of each attempt, and the recording's own state, which is the latest
    attempt's.
    """
    rows = connection.execute(
        sa.select(attempts)
        .where(attempts.c.recording_key == recording_key)
        .order_by(attempts.c.number)
    ).all()
    by_id = {row.id: row for row in rows}
    as_sent = [
        Attempt(id=row.id, started_at=timestamp_from_column(row.started_at), after=row.after_id)
        for row in rows
    ]
    ordered = [by_id[each.id] for each in in_order(as_sent)]
    visible_below = NEVER
    for attempt in reversed(ordered):
        if attempt.visible_below != visible_below:
            connection.execute(
                attempts.update()
                .where(attempts.c.key == attempt.key)
                .values(visible_below=visible_below)
            )
        visible_below = min(visible_below, attempt.resume_at)
    latest = ordered[-1]
    values: dict[str, Any] = {"updated_at": now}
    before = connection.execute(
        sa.select(recordings.c.attempt).where(recordings.c.key == recording_key)
    ).scalar_one()
    if before != latest.number:
        values |= ending_to_row(Ending(status=latest.status)) | {
            "attempt": latest.number,
            "finished_at": latest.finished_at,
            "lease_until": lease_until,
        }
    connection.execute(
        recordings.update()
        .where(recordings.c.key == recording_key)
        .values(values | _summary(connection, recording_key))
    )


def _summary(connection: sa.Connection, recording_key: int) -> dict[str, Any]:
    """Count, first and last step, and tokens of the visible rows."""
    rows = measurements.join(attempts)
    where = sa.and_(
        attempts.c.recording_key == recording_key, measurements.c.step < attempts.c.visible_below
    )
    count, first, last = connection.execute(
        sa.select(
            sa.func.count(), sa.func.min(measurements.c.step), sa.func.max(measurements.c.step)
        )
        .select_from(rows)
        .where(where)
    ).one()
    tokens = connection.execute(
        sa.select(measurements.c.tokens)
        .select_from(rows)
        .where(where, measurements.c.tokens.is_not(None))
        .order_by(measurements.c.step.desc())
        .limit(1)
    ).scalar_one_or_none()
    return {"rows": count, "first_step": first or 0, "last_step": last or 0, "tokens": tokens}


def attempt_ended(recording_id: str, number: int, status: str) -> Refused:
    """The error for rows of an attempt that has ended."""
    return Refused(
        f"recording {recording_id}: attempt {number} ended as {status} and takes no more rows; "
        "resume it as a new attempt"
    )
