"""Parts of recordings, as an import brings them."""

from __future__ import annotations

from dataclasses import dataclass

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Attempt, Ending, RecordingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingPart:
    """A part of one recording: of a short one the whole, of a long one some rows.

    spec, attempt: as `Store.start` takes them; None: an earlier part has started the recording.
    rows: of the latest attempt; None: none.
    ending: of the latest attempt; None: further parts follow.
    """

    recording_id: str
    spec: RecordingSpec | None = None
    attempt: Attempt | None = None
    rows: MeasurementBatch | None = None
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import.

    created: recordings and attempts that were opened.
    committed: rows that are durable now.
    duplicates: how many of these had been stored before.
    """

    created: int
    committed: int
    duplicates: int
