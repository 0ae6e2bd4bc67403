"""What only a server offers, and what a folder says of it.

What both promise is tested by `tests/server/store/registry_conformance.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from played_calls import PlayedCalls
from spooled import row_of, spec_of

from flerm_client.registry.address import address_of, token_of
from flerm_client.registry.backend import RegistryBackend
from flerm_client.registry.connection import Connection
from flerm_client.registry.folder_backend import FolderBackend
from flerm_client.registry.grpc_backend import GrpcBackend
from flerm_core.errors import DataLoss, Unsupported
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import Ending
from flerm_proto.v1 import registry_pb2 as pb

LATE = Timestamp(seconds=253_402_300_800)  # the year 10000


@pytest.fixture
def server(registry) -> Iterator[RegistryBackend]:
    backend = GrpcBackend(Connection(address_of(registry.address), token_of()))
    yield backend
    backend.close()


def test_a_server_changes_what_it_has(server):
    spec = spec_of(f"backend/{uuid.uuid4().hex[:12]}", tags={"draft": "1"})
    server.start(spec, None)
    server.append(spec.id, [row_of(1), row_of(101)])
    tagged = server.tag(spec.id, {"purpose": "baseline"}, ["draft"])
    assert tagged.spec.tags == {"purpose": "baseline"}
    assert server.rename_family(spec.family, f"{spec.family}-b").name == f"{spec.family}-b"
    assert server.delete(spec.id) == 2
    assert server.delete(spec.id) == 0


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GetRecording", pb.Recording(created_at=Timestamp(nanos=-1))),
        ("ListRecordings", pb.ListRecordingsResponse(recordings=[pb.Recording(updated_at=LATE)])),
        ("ListFamilies", pb.ListFamiliesResponse(families=[pb.Family(created_at=LATE)])),
        ("RenameFamily", pb.Family(updated_at=LATE)),
        ("ServerInfo", pb.ServerInfoResponse(now=LATE)),
        ("FinishRecording", pb.Recording(finished_at=LATE)),
    ],
)
def test_an_answer_that_no_registry_gives_is_one_sentence(method, answer):
    calls = PlayedCalls()
    calls.answer = lambda asked, request: answer
    backend = GrpcBackend(calls)
    asked: dict[str, Callable[[], object]] = {
        "GetRecording": lambda: backend.recording("id"),
        "ListRecordings": lambda: list(backend.recordings(RecordingFilter())),
        "ListFamilies": lambda: list(backend.families()),
        "RenameFamily": lambda: backend.rename_family("a", "b"),
        "ServerInfo": backend.info,
        "FinishRecording": lambda: backend.finish("id", Ending(status="completed")),
    }
    with pytest.raises(DataLoss, match=f"the registry answered {method} with what it may not hold"):
        asked[method]()


def test_a_folder_says_in_one_sentence_what_it_cannot_do(tmp_path):
    folder = FolderBackend(tmp_path)
    for action, call in {
        "rename a family": lambda: folder.rename_family("a", "b"),
        "change tags": lambda: folder.tag("id", {}, []),
        "delete a recording": lambda: folder.delete("id"),
        "report versions and limits": folder.info,
    }.items():
        with pytest.raises(Unsupported, match=f"registry: cannot {action}: .* is a folder, whose"):
            call()


def test_a_server_reports_its_limits(server):
    info = server.info()
    assert "v1" in info.api_versions and info.max_rows_per_append >= 500
