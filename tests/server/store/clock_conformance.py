"""What every `Store` promises about moments that clients state, whose clocks may be wrong.

A test module uses `ClockConformance` as it uses `StoreConformance`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from flerm_core.records.recording import Attempt, Ending
from flerm_server.store.interface import Store
from tests.server.samples import attempt, family, row, rows, spec
from tests.server.store.store_conformance import append


class ClockConformance:
    """What a store of recordings promises about clocks (see `Store`)."""

    def test_a_resume_comes_after_the_attempt_it_resumed_from_whatever_the_clocks_say(
        self, store: Store
    ):
        """Two attempts resume from the first's checkpoint, on hosts whose clocks are slow."""
        sent = spec(family())
        first, second, third = attempt(0, 30), attempt(150, 2), attempt(120, 1)
        store.start(sent, first)
        append(store, sent.id, *rows(1, 101, 201))
        store.start(sent, replace(second, after=first.id))
        append(store, sent.id, row(201, 5, 5, 5))
        found = store.recording(sent.id)
        assert (found.attempt, found.rows) == (2, 3)
        store.start(sent, replace(third, after=first.id))
        append(store, sent.id, row(151, 6, 6, 6))
        assert store.recording(sent.id).attempt == 3
        values = np.concatenate([block.values for block in store.read(store.select(sent.id))])
        assert values[:, 0].tolist() == [1, 101, 6]

    def test_a_client_s_clock_that_differs_is_corrected(self, store: Store):
        """The second began a minute after the first, by a clock that is a year late; the first's
        spool arrives afterwards.
        """
        sent = spec(family())
        moment = datetime.now(UTC)
        second = Attempt(
            resume_at=2,
            started_at=moment - timedelta(days=365, seconds=1),
            sent_at=moment - timedelta(days=365),
        )
        store.start(sent, second)
        store.start(sent, Attempt(started_at=moment - timedelta(seconds=61), sent_at=moment))
        append(store, sent.id, row(1, 1, 1, 1), row(2, 1, 1, 1), attempt=2)
        append(store, sent.id, row(2, 2, 2, 2), attempt=1)
        found = store.recording(sent.id)
        assert (found.attempt, found.rows) == (1, 2)
        values = np.concatenate([block.values for block in store.read(store.select(sent.id))])
        assert values[:, 0].tolist() == [1, 2]

    def test_a_start_that_travelled_for_seconds_does_not_correct_the_client_s_clock(
        self, store: Store
    ):
        sent = spec(family())
        moment = datetime.now(UTC)
        store.start(
            sent,
            Attempt(
                started_at=moment - timedelta(seconds=6), sent_at=moment - timedelta(seconds=6)
            ),
        )
        store.start(
            sent, Attempt(resume_at=2, started_at=moment - timedelta(seconds=5), sent_at=moment)
        )
        append(store, sent.id, row(1, 1, 1, 1), row(2, 1, 1, 1), attempt=1)
        append(store, sent.id, row(2, 2, 2, 2), attempt=2)
        values = np.concatenate([block.values for block in store.read(store.select(sent.id))])
        assert values[:, 0].tolist() == [1, 2]

    def test_an_end_is_kept_as_when_it_was_and_not_as_when_it_arrived(self, store: Store):
        """By clocks that are right or a year off, and never before the start or after the arrival.
        Seconds in which a message may travel correct no clock.
        """
        for days, ago in ((0, 60), (365, 60), (-365, 60), (0, 999), (0, -9)):
            sent, moment = spec(family()), datetime.now(UTC)
            theirs = moment - timedelta(days)
            store.start(sent, Attempt(started_at=theirs - timedelta(seconds=120), sent_at=theirs))
            ending = Ending(finished_at=theirs - timedelta(seconds=ago), sent_at=theirs)
            found = store.finish(sent.id, 1, ending)
            kept = moment - timedelta(seconds=min(max(ago, 0), 120))
            assert found.finished_at is not None
            assert abs(found.finished_at - kept) < timedelta(seconds=30)
            assert found.created_at <= found.finished_at <= found.updated_at
