"""Every RPC with every kind of token: who may do what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.permissions import RPCS, path_needs, rpc_needs
from flerm_server.auth.principal import Scope
from flerm_server.auth.sql_tokens import SqlTokenStore
from tests.server.auth.locked_registry import (
    DENIED,
    KINDS,
    MISSING,
    OK,
    SERVICE,
    Locked,
    call,
    expected,
)
from tests.server.samples import NAMES, family, row, spec


def request(locked: Locked, method: str) -> Any:
    """A request of that method for something of the family; it succeeds with the right token."""
    start = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(spec(locked.family)))
    if method == "RenameFamily":
        old = f"{locked.family.split('/')[0]}/{family().replace('/', '-')}"
        locked.store.register_family(old)
        return pb.RenameFamilyRequest(name=old, new_name=f"{old}-renamed")
    if method in ("ServerInfo", "ListFamilies", "ListRecordings"):
        return getattr(pb, f"{method}Request")()
    if method == "RegisterFamily":
        return pb.RegisterFamilyRequest(name=locked.family, description="ours")
    if method == "StartRecording":
        return start
    if method == "ImportRecordings":
        part = pb.RecordingPart(recording_id=start.spec.id, start=start)
        return pb.ImportRecordingsRequest(parts=[part])
    if method in ("GetTargets", "GetBest"):
        locked.recording()
        more = {"lr": 1e-3, "names": NAMES} if method == "GetTargets" else {}
        return getattr(pb, f"{method}Request")(family=locked.family, **more)
    recording = locked.recording(ended=method.startswith("Get"))
    if method == "Append":
        return pb.AppendRequest(
            recording_id=recording, measurements=[recording_messages.measurement_to_proto(row(3))]
        )
    return {
        "FinishRecording": pb.FinishRecordingRequest(recording_id=recording, status="completed"),
        "RenewLease": pb.RenewLeaseRequest(recording_id=recording),
        "TagRecording": pb.TagRecordingRequest(recording_id=recording, set={"a": "b"}),
        "DeleteRecording": pb.DeleteRecordingRequest(recording_id=recording),
        "GetRecording": pb.GetRecordingRequest(recording_id=recording),
        "GetTrajectory": pb.GetTrajectoryRequest(recording_id=recording),
    }[method]


OF_THE_REGISTRY = ("ServerInfo", "ListFamilies", "ListRecordings")


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
def test_every_rpc_asks_for_the_right_token(locked: Locked, method: str):
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        found = {
            kind: call(channel, method, request(locked, method), locked.tokens[kind])
            for kind in KINDS
        }
    assert {kind: outcome for kind, (outcome, _, _) in found.items()} == {
        kind: expected(
            kind, RPCS[method], of_family=method not in OF_THE_REGISTRY, by_id=names_one(method)
        )
        for kind in found
    }
    for kind, (outcome, sentence, _) in found.items():
        assert locked.tokens[kind] == "" or locked.tokens[kind] not in sentence
        assert outcome == OK or sentence.startswith(
            ("this registry wants a token", "the token ", "token ", "recording ")
        ), sentence


def names_one(method: str) -> bool:
    """Whether a method's request names a recording."""
    return "recording_id" in SERVICE.methods_by_name[method].input_type.fields_by_name


@pytest.mark.parametrize("method", [each.name for each in SERVICE.methods if names_one(each.name)])
def test_a_recording_of_others_is_answered_as_one_that_is_not_there(locked: Locked, method: str):
    message = request(locked, method)
    theirs = message.recording_id
    nowhere = type(message).FromString(message.SerializeToString())
    nowhere.recording_id = spec("").id
    token = locked.tokens["other family"]
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        outcome, sentence, _ = call(channel, method, message, token)
        absent = call(channel, method, nowhere, token)
    assert (outcome, sentence.replace(theirs, nowhere.recording_id), None) == absent
    assert outcome == MISSING


def test_a_bound_token_that_renames_an_unknown_family_learns_no_names_of_others(locked: Locked):
    other = family()
    locked.store.register_family(other)
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        ours = locked.family.split("/")[0]
        asked = pb.RenameFamilyRequest(name=f"{ours}/no-such", new_name=f"{ours}/other")
        with pytest.raises(grpc.RpcError) as refusal:
            metadata = (("authorization", f"Bearer {locked.tokens['own team']}"),)
            rpc.RegistryStub(channel).RenameFamily(asked, metadata=metadata, timeout=10)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert other not in refusal.value.details()
    assert "elsewhere" not in refusal.value.details()


def test_a_bound_token_sees_nothing_of_other_families(locked: Locked):
    recording = locked.recording()
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        for kind, sees in (
            ("own team", True),
            ("other family", False),
            ("near name", False),
            ("read", True),
        ):
            _, _, families = call(
                channel, "ListFamilies", pb.ListFamiliesRequest(page_size=1000), locked.tokens[kind]
            )
            _, _, listed = call(
                channel,
                "ListRecordings",
                pb.ListRecordingsRequest(page_size=1000),
                locked.tokens[kind],
            )
            assert (locked.family in [each.name for each in families.families]) is sees, kind
            assert (recording in [each.spec.id for each in listed.recordings]) is sees, kind
        unknown = pb.GetBestRequest(family="elsewhere/none")
        metadata = [("authorization", f"Bearer {locked.tokens['other family']}")]
        with pytest.raises(grpc.RpcError) as caught:
            rpc.RegistryStub(channel).GetBest(unknown, timeout=20, metadata=metadata)
        assert (
            caught.value.details()
            == "family 'elsewhere/none' is not in this registry; this registry has none yet"
        )


def test_a_bound_token_opens_no_attempt_of_another_s_recording_by_a_name_of_its_own(locked: Locked):
    sent = locked.store.recording(locked.recording()).spec
    theirs = replace(sent, family=f"{locked.family.split('/')[0]}x/none")
    start = pb.StartRecordingRequest(
        spec=recording_messages.spec_to_proto(theirs),
        attempt=pb.Attempt(id=spec("").id, resume_at=1),
    )
    _, secret = SqlTokenStore(locked.store.engine).create(
        "near", "write", theirs.family.split("/")[0]
    )
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        assert call(channel, "StartRecording", start, secret.text)[0] == DENIED
    assert locked.store.recording(sent.id).attempt == 1


def test_a_bound_token_imports_nothing_into_another_s_recording(locked: Locked):
    theirs = locked.recording()
    mine = spec(f"{locked.family.split('/')[0]}x/none")
    _, secret = SqlTokenStore(locked.store.engine).create("near", "write", mine.family)
    start = pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(mine))
    started = pb.RecordingPart(recording_id=mine.id, start=start)
    rows_of_theirs = pb.RecordingPart(
        recording_id=theirs, measurements=[recording_messages.measurement_to_proto(row(9))]
    )
    under_their_id = pb.RecordingPart(recording_id=theirs, start=start)
    rows_before = locked.store.recording(theirs).rows
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        for parts, outcome in (
            ([started, rows_of_theirs], MISSING),
            ([started, under_their_id], DENIED),
        ):
            asked = pb.ImportRecordingsRequest(parts=parts)
            assert call(channel, "ImportRecordings", asked, secret.text)[0] == outcome
    assert locked.store.recording(theirs).rows == rows_before
    assert mine.family not in [each.name for each in locked.store.families().items]


def test_health_and_reflection_need_no_token(locked: Locked):
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert rpc_needs("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") is None


def test_a_method_without_a_rule_needs_admin():
    assert {method.name for method in SERVICE.methods} == set(RPCS)
    assert rpc_needs("/flerm.registry.v1.Registry/Forgotten") is Scope.ADMIN
    assert rpc_needs("/other.Service/GetRecording") is Scope.READ
    assert path_needs("/anything") is Scope.READ
    assert path_needs("/login/../api") is Scope.READ


def test_what_a_token_made_is_signed_with_its_name(locked: Locked):
    token = locked.tokens["write"]
    with grpc.insecure_channel(locked.server.grpc_address.text) as channel:
        sent = spec(f"{locked.family}-signed")
        assert (
            call(
                channel,
                "StartRecording",
                pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)),
                token,
            )[0]
            == OK
        )
    signed = f"writer ({token.split('_')[1]})"
    assert locked.store.recording(sent.id).created_by == signed
    assert locked.store.family(sent.family).created_by == signed
