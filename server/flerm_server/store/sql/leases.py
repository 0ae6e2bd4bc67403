"""The renewal of a lease: what every running job asks for three times a lease, all day."""

from __future__ import annotations

import sqlalchemy as sa

from flerm_server.store.sql.compiled_statements import Driver, Prepared, Statement
from flerm_server.store.sql.finish_attempt import unknown_attempt
from flerm_server.store.sql.tables import attempts, recordings
from flerm_server.store.unknown_recording import unknown_recording

_ID = recordings.c.id == sa.bindparam("id")
_LOCK = Prepared(sa.select(recordings.c.key, recordings.c.attempt).where(_ID).with_for_update())
_ATTEMPTS = Prepared(
    sa.select(attempts.c.number, attempts.c.status)
    .join(recordings)
    .where(_ID, attempts.c.number.in_([sa.bindparam("number"), recordings.c.attempt]))
)
_RENEW = Prepared(
    recordings.update()
    .where(recordings.c.key == sa.bindparam("recording"))
    .values(lease_until=sa.bindparam("until"))
)


def state_of(dialect: sa.Dialect, recording_id: str, number: int) -> list[Statement]:
    """What to ask first in the transaction of `renew_lease`: it locks the recording."""
    return [
        _LOCK.of(dialect, {"id": recording_id}),
        _ATTEMPTS.of(dialect, {"id": recording_id, "number": number}),
    ]


def renew_lease(driver: Driver, recording_id: str, number: int, until: int) -> bool:
    """Whether attempt `number` (0: the latest) is the recording's latest, and still runs. Its lease
    then ends at `until`, in microseconds.

    driver: of a transaction that began with what `state_of` asks.

    Raises `NotFound`.
    """
    locked, its_attempts = driver.answers[:2]
    if not locked:
        raise unknown_recording(recording_id)
    key, latest = locked[0]
    statuses: dict[int, str] = dict(its_attempts)
    if (number or latest) not in statuses:
        raise unknown_attempt(recording_id, number, latest)
    if number not in (0, latest) or statuses[latest] != "running":
        return False
    driver.last.append(_RENEW.of(driver.dialect, {"recording": key, "until": until}))
    return True
