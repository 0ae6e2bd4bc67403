"""The store of a server, reached over gRPC, for the suite that tests the store directly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import grpc
import numpy as np

from flerm_core.errors import FlermError
from flerm_core.records.packing import unpack
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Attempt, Ending, Family, Recording, RecordingSpec
from flerm_proto import recording_messages
from flerm_proto.fields import timestamp_from_proto
from flerm_proto.status_codes import error_of
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.store.interface import (
    Appended,
    Batch,
    Page,
    Rows,
    Segment,
    Selection,
    Started,
    Store,
    StoreInfo,
)
from flerm_server.store.quotas import UNLIMITED
from flerm_server.store.recording_part import Imported

SECONDS = 20


class GrpcStore(Store):
    """A `Store` by the calls of the wire contract. The trajectory's extra scalars do not travel."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub = rpc.RegistryStub(self.channel)

    def _call(self, method: str, request: object) -> object:
        try:
            return getattr(self.stub, method)(request, timeout=SECONDS)
        except grpc.RpcError as error:
            raise error_of(error.code(), error.details()) from None

    def info(self) -> StoreInfo:
        found = self._call("ServerInfo", pb.ServerInfoRequest())
        return StoreInfo(found.schema_revision, timestamp_from_proto(found.now))

    ready = info

    def register_family(
        self, name, *, description="", blocks: Sequence[str] = (), created_by=""
    ) -> Family:
        request = pb.RegisterFamilyRequest(name=name, description=description, blocks=blocks)
        return recording_messages.family_from_proto(self._call("RegisterFamily", request))

    def family(self, name: str, *, within="") -> Family:
        return next(each for each in self.families(prefix=name).items if each.name == name)

    def families(self, *, prefix="", page_size=0, page_token="", within="") -> Page[Family]:
        request = pb.ListFamiliesRequest(prefix=prefix, page_size=page_size, page_token=page_token)
        found = self._call("ListFamilies", request)
        return Page(
            tuple(map(recording_messages.family_from_proto, found.families)), found.next_page_token
        )

    def rename_family(self, name: str, new_name: str) -> Family:
        return recording_messages.family_from_proto(
            self._call("RenameFamily", pb.RenameFamilyRequest(name=name, new_name=new_name))
        )

    def tag(self, recording_id: str, tags, remove: Sequence[str] = ()) -> Recording:
        request = pb.TagRecordingRequest(recording_id=recording_id, set=tags, remove=remove)
        return recording_messages.recording_from_proto(self._call("TagRecording", request))

    def delete(self, recording_id: str) -> int:
        return self._call(
            "DeleteRecording", pb.DeleteRecordingRequest(recording_id=recording_id)
        ).rows

    def start(
        self,
        spec: RecordingSpec,
        attempt: Attempt | None = None,
        *,
        created_by="",
        quotas=UNLIMITED,
    ) -> Started:
        request = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(spec))
        if attempt is not None:
            request.attempt.CopyFrom(recording_messages.attempt_to_proto(attempt))
        found = self._call("StartRecording", request)
        return Started(found.recording_id, found.attempt, found.created)

    def append_many(self, batches: Sequence[Batch]) -> list[Appended | FlermError]:
        return [self._append_batch(batch) for batch in batches]

    def _append_batch(self, batch: Batch) -> Appended | FlermError:
        request = pb.AppendRequest(
            recording_id=batch.recording_id,
            attempt=batch.attempt,
            measurements=map(recording_messages.measurement_to_proto, batch.rows),
            acknowledged_step=batch.acknowledged_step,
        )
        try:
            answer = self._call("Append", request)
        except FlermError as error:
            return error
        return Appended(answer.committed, answer.duplicates)

    def finish(
        self,
        recording_id: str,
        attempt: int,
        ending: Ending,
        *,
        acknowledged_step: int | None = None,
    ) -> Recording:
        request = recording_messages.ending_to_proto(
            ending, recording_id=recording_id, attempt=attempt
        )
        if acknowledged_step is not None:
            request.acknowledged_step = acknowledged_step
        return recording_messages.recording_from_proto(self._call("FinishRecording", request))

    def import_parts(self, parts, *, created_by="", quotas=UNLIMITED) -> Imported:
        request = pb.ImportRecordingsRequest()
        for part in parts:
            message = request.parts.add(recording_id=part.recording_id)
            if part.spec is not None:
                message.start.spec.CopyFrom(recording_messages.spec_to_proto(part.spec))
            if part.attempt is not None:
                message.start.attempt.CopyFrom(recording_messages.attempt_to_proto(part.attempt))
            message.measurements.extend(
                map(recording_messages.measurement_to_proto, part.rows or ())
            )
            if part.ending is not None:
                message.finish.CopyFrom(recording_messages.ending_to_proto(part.ending))
        found = self._call("ImportRecordings", request)
        # How many were created does not travel.
        created = sum(part.spec is not None for part in parts)
        return Imported(created, found.committed, found.duplicates)

    def renew(self, recording_id: str, attempt: int = 0) -> float:
        return self._call(
            "RenewLease", pb.RenewLeaseRequest(recording_id=recording_id, attempt=attempt)
        ).seconds

    def recording(self, recording_id: str) -> Recording:
        return recording_messages.recording_from_proto(
            self._call("GetRecording", pb.GetRecordingRequest(recording_id=recording_id))
        )

    def family_of(self, recording_id: str) -> str:
        return self.recording(recording_id).spec.family

    def recordings(
        self, filters: RecordingFilter, *, page_size=0, page_token="", within=""
    ) -> Page[Recording]:
        found = self._call(
            "ListRecordings",
            recording_messages.filter_to_proto(filters, page_size=page_size, page_token=page_token),
        )
        return Page(
            tuple(map(recording_messages.recording_from_proto, found.recordings)),
            found.next_page_token,
        )

    def sources(self, query, *, within=""):
        raise NotImplementedError("targets travel whole: `Connection.targets`")

    def family_runs(self, name, *, within=""):
        raise NotImplementedError

    def runs(self, filters):
        raise NotImplementedError("the best rate travels, not what it was found by")

    def select(self, recording_id, *, first_step=None, last_step=None, max_points=0) -> Selection:
        request = pb.GetTrajectoryRequest(
            recording_id=recording_id,
            first_step=first_step,
            last_step=last_step,
            max_points=max_points,
        )
        stream = self.stub.GetTrajectory(request, timeout=SECONDS)
        try:
            header = next(stream).header
            parameters = recording_messages.parameters_from_proto(header.parameters)
            self._parts = [chunk.rows for chunk in stream]
        except grpc.RpcError as error:
            raise error_of(error.code(), error.details()) from None
        recording = recording_messages.recording_from_proto(header.recording)
        recording = replace(recording, spec=replace(recording.spec, parameters=parameters))
        steps = np.array([step for part in self._parts for step in part.steps], np.int64)
        assert len(steps) == header.rows
        return Selection(recording, steps, (Segment(0, 0, 0),))

    def read(self, selection: Selection, columns: Sequence[int] | None = None) -> Iterator[Rows]:
        for part in self._parts:
            values = unpack(part.values, selection.recording.parameter_count)
            yield Rows(
                np.array(part.steps, np.int64),
                values if columns is None else values[:, list(columns)],
                np.array(part.losses),
                np.array(part.learning_rates),
                np.array(part.tokens),
                (None,) * len(part.steps),
            )

    def close(self) -> None:
        self.channel.close()
