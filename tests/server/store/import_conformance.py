"""What every `Store` promises of imports: parts of recordings, whole and once.

A test module makes a subclass of `ImportConformance` as of `StoreConformance`, with its fixture
`store`.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from flerm_core.errors import AlreadyExists, InvalidInput, NotFound
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Attempt, Ending
from flerm_server.store.interface import Store
from flerm_server.store.recording_part import Imported, RecordingPart
from tests.server.samples import batch, family, row, rows, spec


class ImportConformance:
    """What a store promises of an import (see `Store.import_parts`)."""

    def test_recordings_are_imported_whole_and_once(self, store: Store):
        name = family()
        began = datetime(2026, 1, 2, tzinfo=UTC)
        specs = [spec(name, seed=seed, tags={"seed": str(seed)}) for seed in range(3)]
        ending = Ending(status="diverged", final_loss=0.5, final_step=300, remarks=("so",))
        first = [
            RecordingPart(
                recording_id=each.id,
                spec=each,
                attempt=Attempt(id=each.id, started_at=began),
                rows=MeasurementBatch.of(rows(1, 101)),
                ending=ending if each is not specs[2] else None,
            )
            for each in specs
        ]
        rest = [
            RecordingPart(
                recording_id=specs[2].id, rows=MeasurementBatch.of(rows(201)), ending=ending
            )
        ]
        assert store.import_parts(first) == Imported(3, 6, 0)
        assert store.recording(specs[2].id).status == "running"
        assert store.import_parts(rest) == Imported(0, 1, 0)
        for _ in range(2):
            again = store.import_parts(first)
            assert (again.committed, again.duplicates) == (6, 6)
            assert store.import_parts(rest) == Imported(0, 1, 1)
        for each, steps in zip(specs, ([1, 101], [1, 101], [1, 101, 201]), strict=True):
            found = store.recording(each.id)
            assert (found.spec, found.status, found.created_at) == (each, "diverged", began)
            assert (found.final_loss, found.final_step, found.remarks) == (0.5, 300, ("so",))
            assert store.select(each.id).steps.tolist() == steps

    def test_an_import_is_refused_whole(self, store: Store):
        name, other = family(), family()
        good, wrong = spec(name), spec(name, lr=-1.0)
        known = spec(other)
        store.start(known)
        store.append_many([batch(known.id, row(1, 1, 2, 3))])
        store.finish(known.id, 0, Ending())
        part = RecordingPart(recording_id=good.id, spec=good, rows=MeasurementBatch.of(rows(1)))
        refused = [
            (RecordingPart(recording_id=wrong.id, spec=wrong), InvalidInput, "lr"),
            (
                RecordingPart(recording_id=known.id, rows=MeasurementBatch.of([row(1, 3, 2, 1)])),
                AlreadyExists,
                "other content",
            ),
            (
                RecordingPart(recording_id=known.id, ending=Ending(status="failed")),
                AlreadyExists,
                "ended as completed",
            ),
            (
                RecordingPart(recording_id=str(uuid.uuid4()), rows=MeasurementBatch.of(rows(1))),
                NotFound,
                "not in this registry",
            ),
            (RecordingPart(recording_id=known.id, spec=good), InvalidInput, "start.spec.id"),
            (part, InvalidInput, "two of one recording"),
        ]
        for bad, error, sentence in refused:
            with pytest.raises(error, match=sentence) as caught:
                store.import_parts([part, bad])
            assert bad.recording_id in str(caught.value)
            assert store.recordings(RecordingFilter(family=name)).items == ()
        with pytest.raises(InvalidInput, match="at most 50"):
            store.import_parts([part] * 51)
