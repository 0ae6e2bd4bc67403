"""Moments that a client's clock shows, on the database's clock."""

from __future__ import annotations

from datetime import datetime

from flerm_core.records.validation import MAX_MOMENT
from flerm_server.store.sql.engine import timestamp_to_column

# Microseconds. A client's clock that differs by less is taken to be right: the difference is the
# time that the message travelled, which is another for every message.
TRAVEL_TIME = 10_000_000


def on_database_clock(moment: datetime, sent_at: datetime | None, now: int) -> int:
    """`moment` in microseconds, as a column has it.

    sent_at: when the message with `moment` was sent, by the same clock; None: that clock is right.
        It tells by how much the client's clock differs from the database's.
    now: the database's time at the arrival, in microseconds.
    """
    shown = timestamp_to_column(moment)
    if sent_at is not None:
        difference = now - timestamp_to_column(sent_at)
        if abs(difference) >= TRAVEL_TIME:
            shown += difference
    return min(max(shown, 0), MAX_MOMENT)
