"""A registry server that a test plays, without gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flerm_client.registry.address import address_of
from flerm_client.registry.calls import RegistryCalls
from flerm_proto.v1 import registry_pb2 as pb


class PlayedCalls(RegistryCalls):
    """Notes the calls that it gets. `refuse` may raise an error for a call."""

    address = address_of("grpc://played:1")

    def __init__(self, refuse: Callable[[str, Any], None] = lambda method, request: None) -> None:
        self.refuse = refuse
        self.steps: list[list[int]] = []
        self.methods: list[str] = []

    def unary(self, method, request, *, seconds=15.0):
        self.methods.append(method)
        self.refuse(method, request)
        if method == "Append":
            self.steps.append([row.step for row in request.measurements])
        return self.answer(method, request)

    def answer(self, method: str, request: Any) -> Any:
        """What the wire contract says for a call that was not refused."""
        if method == "StartRecording":
            return pb.StartRecordingResponse(recording_id=request.spec.id, attempt=1)
        if method == "Append":
            return pb.AppendResponse(committed=len(request.measurements))
        if method == "FinishRecording":
            return pb.Recording(spec=pb.RecordingSpec(id=request.recording_id))
        assert method == "RenewLease"
        return pb.RenewLeaseResponse(seconds=30.0)

    def stream(self, method, request):
        raise NotImplementedError

    def close(self) -> None: ...
