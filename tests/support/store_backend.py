"""A server's store as a registry backend, so that one suite of cases holds for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from flerm_client.registry.backend import RegistryBackend
from flerm_core.matching.targets import Targets
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import (
    Attempt,
    Ending,
    Family,
    Measurement,
    Recording,
    RecordingSpec,
)
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best
from flerm_server.store import queries
from flerm_server.store.auxiliary_codec import decode
from flerm_server.store.interface import Batch, Store


class StoreBackend(RegistryBackend):
    """`store`, called without gRPC in between."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def register_family(self, name: str, description: str, blocks: Sequence[str]) -> Family:
        return self._store.register_family(name, description=description, blocks=blocks)

    def families(self, prefix: str = "") -> Iterator[Family]:
        return iter(self._store.families(prefix=prefix, page_size=1000).items)

    def rename_family(self, name: str, new_name: str) -> Family:
        return self._store.rename_family(name, new_name)

    def start(self, spec: RecordingSpec, attempt: Attempt | None) -> None:
        self._store.start(spec, attempt)

    def append(self, recording_id: str, rows: Sequence[Measurement]) -> None:
        (answer,) = self._store.append_many([Batch(recording_id, MeasurementBatch.of(rows), 0)])
        if isinstance(answer, Exception):
            raise answer

    def finish(self, recording_id: str, ending: Ending) -> Recording:
        return self._store.finish(recording_id, 0, ending)

    def tag(self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str]) -> Recording:
        return self._store.tag(recording_id, tags, remove)

    def delete(self, recording_id: str) -> int:
        return self._store.delete(recording_id)

    def recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        return self._store.all_recordings(filters)

    def recording(self, recording_id: str) -> Recording:
        return self._store.recording(recording_id)

    def trajectory(
        self, query: TrajectoryQuery, progress: Callable[[int, int], None] | None = None
    ) -> Trajectory:
        found = queries.trajectory(self._store, query)
        if progress is not None:
            progress(len(found), len(found))
        return found

    def auxiliary(
        self, recording_id: str, first_step: int | None, last_step: int | None
    ) -> AuxiliaryColumns:
        selection = self._store.select(recording_id, first_step=first_step, last_step=last_step)
        rows = [decode(packed) for part in self._store.read(selection) for packed in part.auxiliary]
        width = len(selection.recording.spec.parameters)
        return AuxiliaryColumns.of(selection.steps, rows, width)

    def targets(self, query: TargetQuery) -> Targets:
        return queries.targets(self._store, query)

    def best(self, query: BestQuery) -> Best:
        return queries.best(self._store, query)

    def close(self) -> None:
        """Leaves the store open: its owner closes it."""
