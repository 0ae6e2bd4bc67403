"""A registry server: each method is one call of the wire contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from google.protobuf.message import Message

from flerm_client.registry.backend import RegistryBackend, RegistryInfo
from flerm_client.registry.calls import APPEND_BYTES, APPEND_ROWS, RegistryCalls
from flerm_client.spool.writer import start_request
from flerm_core.errors import DataLoss, FlermError, InvalidInput
from flerm_core.matching.targets import Targets
from flerm_core.records.auxiliary import AuxiliaryColumns
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
from flerm_proto import query_messages, recording_messages
from flerm_proto.fields import timestamp_from_proto
from flerm_proto.v1 import registry_pb2 as pb

Request = TypeVar("Request", bound=Message)


class GrpcBackend(RegistryBackend):
    """The registry server that `calls` reach. `RegistryBackend` documents the methods."""

    def __init__(self, calls: RegistryCalls) -> None:
        self._calls = calls
        # The attempt numbers of the recordings that this backend resumed, by recording id.
        self._attempts: dict[str, int] = {}

    def close(self) -> None:
        """Closes the channel."""
        self._calls.close()

    def info(self) -> RegistryInfo:
        """Calls ServerInfo."""
        answer = self._calls.unary("ServerInfo", pb.ServerInfoRequest())
        with _reading("ServerInfo"):
            return RegistryInfo(
                version=answer.version,
                schema_revision=answer.schema_revision,
                api_versions=tuple(answer.api_versions),
                now=timestamp_from_proto(answer.now),
                max_parameters=answer.max_parameters,
                max_rows_per_append=answer.max_rows_per_append,
            )

    def register_family(self, name: str, description: str, blocks: Sequence[str]) -> Family:
        """Calls RegisterFamily."""
        request = _request(
            pb.RegisterFamilyRequest, name=name, description=description, blocks=blocks
        )
        with _reading("RegisterFamily"):
            return recording_messages.family_from_proto(
                self._calls.unary("RegisterFamily", request)
            )

    def families(self, prefix: str = "") -> Iterator[Family]:
        """Calls ListFamilies, page by page."""
        for page in self._calls.pages(
            "ListFamilies", _request(pb.ListFamiliesRequest, prefix=prefix)
        ):
            with _reading("ListFamilies"):
                found = recording_messages.FAMILY.values(page.families)
            yield from found

    def rename_family(self, name: str, new_name: str) -> Family:
        """Calls RenameFamily."""
        request = _request(pb.RenameFamilyRequest, name=name, new_name=new_name)
        with _reading("RenameFamily"):
            return recording_messages.family_from_proto(self._calls.unary("RenameFamily", request))

    def start(self, spec: RecordingSpec, attempt: Attempt | None) -> None:
        """Calls StartRecording."""
        if attempt is None:
            request = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(spec))
            self._calls.unary("StartRecording", request)
            return
        request = start_request(spec, attempt)
        request.attempt.sent_at.GetCurrentTime()
        self._attempts[spec.id] = self._calls.unary("StartRecording", request).attempt

    def append(self, recording_id: str, rows: Sequence[Measurement]) -> None:
        """Calls Append, in requests of bounded size."""
        batch: list[pb.Measurement] = []
        size = 0
        for message in map(recording_messages.measurement_to_proto, rows):
            length = message.ByteSize()
            if batch and (len(batch) == APPEND_ROWS or size + length > APPEND_BYTES):
                self._append(recording_id, batch)
                batch, size = [], 0
            batch.append(message)
            size += length
        if batch:
            self._append(recording_id, batch)

    def _append(self, recording_id: str, batch: list[pb.Measurement]) -> None:
        attempt = self._attempts.get(recording_id, 0)
        self._calls.unary(
            "Append",
            _request(
                pb.AppendRequest, recording_id=recording_id, attempt=attempt, measurements=batch
            ),
        )

    def finish(self, recording_id: str, ending: Ending) -> Recording:
        """Calls FinishRecording."""
        attempt = self._attempts.get(recording_id, 0)
        request = recording_messages.ending_to_proto(
            ending, recording_id=recording_id, attempt=attempt
        )
        return self._recording("FinishRecording", request)

    def tag(self, recording_id: str, tags: Mapping[str, str], remove: Sequence[str]) -> Recording:
        """Calls TagRecording."""
        request = _request(
            pb.TagRecordingRequest, recording_id=recording_id, set=tags, remove=remove
        )
        return self._recording("TagRecording", request)

    def delete(self, recording_id: str) -> int:
        """Calls DeleteRecording."""
        request = _request(pb.DeleteRecordingRequest, recording_id=recording_id)
        return int(self._calls.unary("DeleteRecording", request).rows)

    def recordings(self, filters: RecordingFilter) -> Iterator[Recording]:
        """Calls ListRecordings, page by page."""
        request = recording_messages.filter_to_proto(filters)
        for page in self._calls.pages("ListRecordings", request):
            with _reading("ListRecordings"):
                found = recording_messages.RECORDING.values(page.recordings)
            yield from found

    def recording(self, recording_id: str) -> Recording:
        """Calls GetRecording."""
        request = _request(pb.GetRecordingRequest, recording_id=recording_id)
        return self._recording("GetRecording", request)

    def _recording(self, method: str, request: Any) -> Recording:
        with _reading(method):
            return recording_messages.recording_from_proto(self._calls.unary(method, request))

    def trajectory(
        self, query: TrajectoryQuery, progress: Callable[[int, int], None] | None = None
    ) -> Trajectory:
        """Calls GetTrajectory."""
        request = query_messages.trajectory_query_to_proto(query)

        def counted() -> Iterator[pb.TrajectoryChunk]:
            received = total = 0
            for chunk in self._calls.trajectory(request):
                total = total or chunk.header.rows
                received += len(chunk.rows.steps)
                if progress is not None:
                    progress(received, total)
                yield chunk

        with _reading("GetTrajectory"):
            return query_messages.trajectory_from_proto(counted())[1]

    def auxiliary(
        self, recording_id: str, first_step: int | None, last_step: int | None
    ) -> AuxiliaryColumns:
        """Calls GetTrajectory, with `auxiliary` set."""
        query = TrajectoryQuery(
            recording_id=recording_id, first_step=first_step, last_step=last_step
        )
        request = query_messages.trajectory_query_to_proto(query)
        request.auxiliary = True
        with _reading("GetTrajectory"):
            return query_messages.auxiliary_from_proto(self._calls.trajectory(request))

    def targets(self, query: TargetQuery) -> Targets:
        """Calls GetTargets."""
        request = query_messages.target_query_to_proto(query)
        with _reading("GetTargets"):
            return query_messages.targets_from_proto(self._calls.stream("GetTargets", request))

    def best(self, query: BestQuery) -> Best:
        """Calls GetBest."""
        request = query_messages.best_query_to_proto(query)
        with _reading("GetBest"):
            return query_messages.best_from_proto(self._calls.unary("GetBest", request))


def _request(kind: type[Request], **fields: Any) -> Request:
    """A message. Raises `InvalidInput` for a value that does not fit, such as a lone surrogate."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{', '.join(fields)}: {error}") from error


@contextmanager
def _reading(method: str) -> Iterator[None]:
    """Raises `DataLoss` where an answer has values that no registry gives, such as a wrong date."""
    try:
        yield
    except FlermError:
        raise
    except ValueError as error:
        raise DataLoss(
            f"the registry answered {method} with what it may not hold: {error}"
        ) from error
