"""A registry server as `RegistryClient` sees it: each method one call of the wire contract, core values in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flerm_client.registry.connection import Connection
from flerm_client.spool.writer import start_request
from flerm_client.upload.spool_delivery import BATCH_BYTES, BATCH_ROWS
from flerm_core.matching.targets import Targets
from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery
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
from flerm_proto import query_messages, recording_messages
from flerm_proto.v1 import registry_pb2 as pb

_PAGE = 200


@dataclass(frozen=True, slots=True)
class RegistryInfo:
    """What a server says of itself. `now` is its database's clock."""

    version: str
    schema_revision: str
    api_versions: tuple[str, ...]
    now: datetime | None
    max_parameters: int
    max_rows_per_append: int


class GrpcBackend:
    """The registry behind a connection. `RegistryClient` says what the methods do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._attempts: dict[str, int] = {}  # of the recordings that this client started

    def close(self) -> None:
        """Closes the channel."""
        self._connection.reset()

    def info(self) -> RegistryInfo:
        """Versions, limits, clock."""
        answer = self._connection.unary("ServerInfo", pb.ServerInfoRequest())
        return RegistryInfo(
            version=answer.version,
            schema_revision=answer.schema_revision,
            api_versions=tuple(answer.api_versions),
            now=recording_messages.timestamp_from(answer, "now"),
            max_parameters=answer.max_parameters,
            max_rows_per_append=answer.max_rows_per_append,
        )

    def register_family(self, name: str, description: str, blocks: Sequence[str]) -> Family:
        """RegisterFamily."""
        request = pb.RegisterFamilyRequest(name=name, description=description, blocks=blocks)
        return recording_messages.family_from(self._connection.unary("RegisterFamily", request))

    def families(self, prefix: str = "") -> Iterator[Family]:
        """ListFamilies, page by page."""
        token = ""
        while True:
            request = pb.ListFamiliesRequest(prefix=prefix, page_size=_PAGE, page_token=token)
            page = self._connection.unary("ListFamilies", request)
            yield from map(recording_messages.family_from, page.families)
            token = page.next_page_token
            if not token:
                return

    def rename_family(self, name: str, new_name: str) -> Family:
        """RenameFamily."""
        return recording_messages.family_from(
            self._connection.unary(
                "RenameFamily", pb.RenameFamilyRequest(name=name, new_name=new_name)
            )
        )

    def start(self, spec: RecordingSpec, attempt: Attempt | None) -> None:
        """StartRecording."""
        request = (
            start_request(spec, attempt)
            if attempt is not None
            else pb.StartRecordingRequest(spec=recording_messages.spec_to(spec))
        )
        if attempt is not None:
            request.sent_at.GetCurrentTime()
        answer = self._connection.unary("StartRecording", request)
        if attempt is not None:
            self._attempts[spec.id] = answer.attempt

    def append(self, recording_id: str, rows: Sequence[Measurement]) -> None:
        """Append, in messages of bounded size."""
        batch: list[pb.Measurement] = []
        size = 0
        for message in map(recording_messages.measurement_to, rows):
            length = message.ByteSize()
            if batch and (len(batch) == BATCH_ROWS or size + length > BATCH_BYTES):
                self._append(recording_id, batch)
                batch, size = [], 0
            batch.append(message)
            size += length
        if batch:
            self._append(recording_id, batch)

    def _append(self, recording_id: str, batch: list[pb.Measurement]) -> None:
        attempt = self._attempts.get(recording_id, 0)
        self._connection.unary(
            "Append",
            pb.AppendRequest(recording_id=recording_id, attempt=attempt, measurements=batch),
        )

    def finish(self, recording_id: str, ending: Ending) -> Recording:
        """FinishRecording."""
        request = recording_messages.ending_to(
            recording_id, self._attempts.get(recording_id, 0), ending
        )
        return recording_messages.recording_from(self._connection.unary("FinishRecording", request))

    def tag(self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str]) -> Recording:
        """TagRecording."""
        request = pb.TagRecordingRequest(recording_id=recording_id, set=tags, remove=remove)
        return recording_messages.recording_from(self._connection.unary("TagRecording", request))

    def delete(self, recording_id: str) -> int:
        """DeleteRecording."""
        answer = self._connection.unary(
            "DeleteRecording", pb.DeleteRecordingRequest(recording_id=recording_id)
        )
        return int(answer.rows)

    def recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        """ListRecordings, page by page."""
        token = ""
        while True:
            page = self._connection.unary(
                "ListRecordings", recording_messages.filter_to(filters, _PAGE, token)
            )
            yield from map(recording_messages.recording_from, page.recordings)
            token = page.next_page_token
            if not token:
                return

    def recording(self, recording_id: str) -> Recording:
        """GetRecording."""
        request = pb.GetRecordingRequest(recording_id=recording_id)
        return recording_messages.recording_from(self._connection.unary("GetRecording", request))

    def trajectory(
        self,
        recording_id: str,
        *,
        first_step: int | None,
        last_step: int | None,
        pattern: str,
        max_points: int,
        progress: Callable[[int, int], None],
    ) -> Trajectory:
        """GetTrajectory."""
        request = pb.GetTrajectoryRequest(
            recording_id=recording_id,
            first_step=first_step,
            last_step=last_step,
            pattern=pattern,
            max_points=max_points,
        )

        def counted() -> Iterator[pb.TrajectoryChunk]:
            arrived = total = 0
            for chunk in self._connection.stream("GetTrajectory", request):
                total = total or chunk.header.rows
                arrived += len(chunk.rows.steps)
                progress(arrived, total)
                yield chunk

        return query_messages.trajectory_from(counted())[1]

    def extras(self, recording_id: str, first_step: int | None, last_step: int | None) -> Auxiliary:
        """GetTrajectory, with its extras."""
        request = pb.GetTrajectoryRequest(
            recording_id=recording_id, first_step=first_step, last_step=last_step, extras=True
        )
        return query_messages.extras_from(self._connection.stream("GetTrajectory", request))

    def targets(self, query: TargetQuery) -> Targets:
        """GetTargets."""
        return query_messages.targets_from(
            self._connection.stream("GetTargets", query_messages.query_to(query))
        )

    def best(self, query: BestQuery) -> Best:
        """GetBest."""
        return query_messages.best_from(
            self._connection.unary("GetBest", query_messages.best_query_to(query))
        )
