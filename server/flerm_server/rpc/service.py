"""Every call of the wire contract, on a store.

This module turns messages into values and back; the store and the core decide what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from flerm_core.errors import FlermError, InvalidInput
from flerm_core.records import validation
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.packing import pack
from flerm_core.records.recording import Attempt, RecordingSpec, now
from flerm_proto import query_messages, recording_messages
from flerm_proto.fields import set_timestamp
from flerm_proto.query_messages import MAX_CHUNK_BYTES
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.metrics import Metrics
from flerm_server.store import queries
from flerm_server.store.auxiliary_codec import decode
from flerm_server.store.interface import Appended, Batch, Rows
from flerm_server.store.recording_part import Imported, RecordingPart
from flerm_server.version import version

API_VERSIONS = ("v1",)

Value = TypeVar("Value")


class RegistryService(rpc.RegistryServicer):  # type: ignore[misc, unused-ignore]
    """The service `flerm.registry.v1.Registry`.

    Its methods raise `FlermError`; `CallInterceptor` turns these into status codes.
    """

    def __init__(self, store: AuthorizedStore, metrics: Metrics) -> None:
        """store: what the calls read and write.
        metrics: counts recordings and rows.
        """
        self._store = store
        self._metrics = metrics

    def ServerInfo(
        self, request: pb.ServerInfoRequest, context: grpc.ServicerContext
    ) -> pb.ServerInfoResponse:
        """Versions, limits and the database's clock."""
        info = self._store.info()
        answer = pb.ServerInfoResponse(
            version=version(),
            schema_revision=info.schema_revision,
            api_versions=API_VERSIONS,
            max_parameters=validation.MAX_PARAMETERS,
            max_rows_per_append=validation.MAX_ROWS,
        )
        set_timestamp(answer.now, info.now)
        return answer

    def RegisterFamily(
        self, request: pb.RegisterFamilyRequest, context: grpc.ServicerContext
    ) -> pb.Family:
        """Creates a family or completes its description."""
        family = self._store.register_family(
            request.name, description=request.description, blocks=tuple(request.blocks)
        )
        return recording_messages.family_to_proto(family)

    def ListFamilies(
        self, request: pb.ListFamiliesRequest, context: grpc.ServicerContext
    ) -> pb.ListFamiliesResponse:
        """One page of families by name."""

        def page(size: int) -> pb.ListFamiliesResponse:
            found = self._store.families(
                prefix=request.prefix, page_size=size, page_token=request.page_token
            )
            made = pb.ListFamiliesResponse(next_page_token=found.next_token)
            recording_messages.FAMILY.add(made.families, found.items)
            return made

        return _page_in_message(page, request.page_size, lambda made: len(made.families))

    def StartRecording(
        self, request: pb.StartRecordingRequest, context: grpc.ServicerContext
    ) -> pb.StartRecordingResponse:
        """Opens a recording or an attempt."""

        started = self._store.start_as_read(
            request.spec.family, request.spec.id, lambda: _start(request)
        )
        self._metrics.recordings.inc(started.created)
        return pb.StartRecordingResponse(
            recording_id=started.recording_id, attempt=started.attempt, created=started.created
        )

    def Append(self, request: pb.AppendRequest, context: grpc.ServicerContext) -> pb.AppendResponse:
        """Stores rows; answers when they are committed."""

        def read() -> Batch:
            rows = recording_messages.batch_from_proto(request.measurements)
            return Batch(request.recording_id, rows, request.attempt, _acknowledged_step(request))

        stored = self._store.append(request.recording_id, lambda: _read("measurements", read))
        self._count_rows(stored)
        return pb.AppendResponse(committed=stored.committed, duplicates=stored.duplicates)

    def FinishRecording(
        self, request: pb.FinishRecordingRequest, context: grpc.ServicerContext
    ) -> pb.Recording:
        """Ends an attempt."""
        ending = _read("finished_at", lambda: recording_messages.ending_from_proto(request))
        recording = self._store.finish(
            request.recording_id,
            request.attempt,
            ending,
            acknowledged_step=_acknowledged_step(request),
        )
        return recording_messages.recording_to_proto(recording.without_parameters())

    def ImportRecordings(
        self, request: pb.ImportRecordingsRequest, context: grpc.ServicerContext
    ) -> pb.ImportRecordingsResponse:
        """Stores parts of recordings; answers when they are committed."""
        started = [
            (part.recording_id, part.start.spec.family if part.HasField("start") else None)
            for part in request.parts
        ]
        stored = self._store.import_as_read(started, lambda: list(map(_part, request.parts)))
        self._metrics.recordings.inc(stored.created)
        self._count_rows(stored)
        return pb.ImportRecordingsResponse(committed=stored.committed, duplicates=stored.duplicates)

    def _count_rows(self, stored: Appended | Imported) -> None:
        self._metrics.rows.inc(stored.committed - stored.duplicates)
        if stored.duplicates:
            self._metrics.duplicates.inc(stored.duplicates)

    def RenameFamily(
        self, request: pb.RenameFamilyRequest, context: grpc.ServicerContext
    ) -> pb.Family:
        """Gives a family another name."""
        return recording_messages.family_to_proto(
            self._store.rename_family(request.name, request.new_name)
        )

    def TagRecording(
        self, request: pb.TagRecordingRequest, context: grpc.ServicerContext
    ) -> pb.Recording:
        """Sets and removes tags."""
        recording = self._store.tag(request.recording_id, dict(request.set), tuple(request.remove))
        return recording_messages.recording_to_proto(recording.without_parameters())

    def DeleteRecording(
        self, request: pb.DeleteRecordingRequest, context: grpc.ServicerContext
    ) -> pb.DeleteRecordingResponse:
        """Removes a recording for good."""
        return pb.DeleteRecordingResponse(rows=self._store.delete(request.recording_id))

    def RenewLease(
        self, request: pb.RenewLeaseRequest, context: grpc.ServicerContext
    ) -> pb.RenewLeaseResponse:
        """Keeps a running recording running."""
        return pb.RenewLeaseResponse(
            seconds=self._store.renew(request.recording_id, request.attempt)
        )

    def GetRecording(
        self, request: pb.GetRecordingRequest, context: grpc.ServicerContext
    ) -> pb.Recording:
        """One recording with its parameters."""
        return recording_messages.recording_to_proto(self._store.recording(request.recording_id))

    def ListRecordings(
        self, request: pb.ListRecordingsRequest, context: grpc.ServicerContext
    ) -> pb.ListRecordingsResponse:
        """One page of recordings, newest first."""
        filters = _read("filter", lambda: recording_messages.filter_from_proto(request))

        def page(size: int) -> pb.ListRecordingsResponse:
            found = self._store.recordings(filters, page_size=size, page_token=request.page_token)
            made = pb.ListRecordingsResponse(next_page_token=found.next_token)
            recording_messages.RECORDING.add(made.recordings, found.items)
            return made

        return _page_in_message(page, request.page_size, lambda made: len(made.recordings))

    def GetTrajectory(
        self, request: pb.GetTrajectoryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TrajectoryChunk]:
        """A header, then the rows chunk by chunk, as the database gives them.

        The memory that this takes does not grow with the recording.
        """
        asked = query_messages.trajectory_query_from_proto(request)
        selection, columns = queries.select(self._store, asked)
        parameters = selection.recording.spec.parameters
        chosen = parameters if columns is None else parameters.select(columns)
        header = pb.TrajectoryHeader(
            recording=recording_messages.recording_to_proto(
                selection.recording.without_parameters()
            ),
            parameters=recording_messages.parameters_to_proto(chosen),
            rows=len(selection.steps),
        )
        yield pb.TrajectoryChunk(header=header)
        chunks = self._store.read(selection, columns)
        width = selection.recording.parameter_count
        for rows in (
            (part for chunk in chunks for part in _parts(chunk, width))
            if request.auxiliary
            else chunks
        ):
            yield pb.TrajectoryChunk(
                rows=pb.TrajectoryRows(
                    steps=rows.steps.tolist(),
                    values=pack(rows.values),
                    losses=rows.losses.tolist(),
                    learning_rates=rows.learning_rates.tolist(),
                    tokens=rows.tokens.tolist(),
                    **(
                        _auxiliary(rows, columns, selection.recording.parameter_count)
                        if request.auxiliary
                        else {}
                    ),
                )
            )

    def GetTargets(
        self, request: pb.GetTargetsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TargetsChunk]:
        """Targets for the asker's architecture."""
        query = _read("query", lambda: query_messages.target_query_from_proto(request))
        yield from query_messages.targets_to_proto(queries.targets(self._store, query))

    def GetBest(self, request: pb.GetBestRequest, context: grpc.ServicerContext) -> pb.Best:
        """The best base rate of a family and which to try next."""
        return query_messages.best_to_proto(
            queries.best(self._store, query_messages.best_query_from_proto(request))
        )


def _acknowledged_step(request: pb.AppendRequest | pb.FinishRecordingRequest) -> int | None:
    return request.acknowledged_step if request.HasField("acknowledged_step") else None


def _start(request: pb.StartRecordingRequest) -> tuple[RecordingSpec, Attempt]:
    spec = _read("spec", lambda: recording_messages.spec_from_proto(request.spec))
    return spec, _attempt(request, spec.id)


def _part(message: pb.RecordingPart) -> RecordingPart:
    name = message.recording_id[:80]
    spec, attempt = (
        _read(f"start of recording {name!r}", lambda: _start(message.start))
        if message.HasField("start")
        else (None, None)
    )
    return RecordingPart(
        recording_id=message.recording_id,
        spec=spec,
        attempt=attempt,
        rows=_read(
            f"measurements of recording {name!r}",
            lambda: recording_messages.batch_from_proto(message.measurements),
        ),
        ending=_read(
            f"finish of recording {name!r}",
            lambda: recording_messages.ending_from_proto(message.finish),
        )
        if message.HasField("finish")
        else None,
    )


def _attempt(request: pb.StartRecordingRequest, recording_id: str) -> Attempt:
    attempt = _read("attempt", lambda: recording_messages.attempt_from_proto(request.attempt))
    if attempt.resume_at and not attempt.id:
        raise InvalidInput(
            f"attempt.id of recording {recording_id[:80]!r} is empty: "
            f"a resume (resume_at {attempt.resume_at}) needs one"
        )
    # The first attempt needs no id of its own, and a client without a clock says no time.
    return replace(
        attempt,
        id=attempt.id or recording_id,
        started_at=attempt.started_at if request.attempt.HasField("started_at") else now(),
    )


def _page_in_message(
    page: Callable[[int], Value], size: int, count: Callable[[Value], int]
) -> Value:
    """`page(size)` with as many entries as fit a message; one entry always fits.

    count: the entries of a page. An entry may be long, because it has a recording's configuration.
    """
    made = page(size)
    while made.ByteSize() > MAX_CHUNK_BYTES and count(made) > 1:  # type: ignore[attr-defined]
        made = page(count(made) // 2)
    return made


def _parts(rows: Rows, width: int) -> Iterator[Rows]:
    """`rows` in parts whose auxiliary values fit a message.

    width: the recording's parameters.

    An auxiliary value takes a column as long as its part, even if only one row has the value.
    """
    first, columns = 0, frozenset[tuple[str, int]]()
    for at, data in enumerate(rows.auxiliary):
        scalars, vectors = decode(data) or ({}, {})
        mine = frozenset(
            [*((name, 8) for name in scalars), *((name, 4 * width) for name in vectors)]
        )
        if (
            at > first
            and (at + 1 - first) * sum(size for _, size in columns | mine) > MAX_CHUNK_BYTES
        ):
            yield rows.part(first, at)
            first, columns = at, frozenset()
        columns |= mine
    yield rows.part(first, len(rows.auxiliary))


def _auxiliary(rows: Rows, columns: list[int] | None, width: int) -> dict[str, Any]:
    """The auxiliary columns of `rows`, under the names of `TrajectoryRows`' fields."""
    found = AuxiliaryColumns.of(rows.steps, [decode(data) for data in rows.auxiliary], width)
    chosen = slice(None) if columns is None else columns
    return {
        "scalars": {
            name: pb.Column(values=column.tolist()) for name, column in found.scalars.items()
        },
        "vectors": {name: pack(table[:, chosen]) for name, table in found.vectors.items()},
    }


def _read(field: str, convert: Callable[[], Value]) -> Value:
    """A field of a request, converted.

    Raises `InvalidInput` for what cannot be converted, such as a time beyond the calendar.
    """
    try:
        return convert()
    except FlermError as error:
        raise InvalidInput(f"{field}: {error}") from error
    except (OverflowError, ValueError) as error:
        raise InvalidInput(f"{field}: {' '.join(str(error).split())}") from error
