"""A running server notices the first token and a revoked one, and ends open streams."""

from __future__ import annotations

import time

import grpc
import httpx
import pytest
from held_calls import hold_trajectories

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.authenticator import RECHECK_SECONDS
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.server import Server
from flerm_server.settings import Settings
from flerm_server.store.sql.store import open_store
from tests.server.auth.locked_registry import (
    CODES,
    HERE,
    NOBODY,
    OK,
    call,
)
from tests.server.samples import family, row, spec


def test_a_first_token_locks_an_open_registry_and_revoking_ends_what_is_open(tmp_path, monkeypatch):
    """A running server notices both, though another process does them, and ends open streams."""
    db = f"sqlite:///{tmp_path}/registry.db"
    released = hold_trajectories(monkeypatch)
    server = Server(Settings(db=db, grpc=HERE, http=HERE, drain_seconds=1))
    server.start()
    console = open_store(db)
    try:
        with grpc.insecure_channel(server.grpc_address.text) as channel:
            sent = spec(family())
            assert (
                call(
                    channel,
                    "StartRecording",
                    pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)),
                    "",
                )[0]
                == OK
            )
            token, secret = SqlTokenStore(console.engine).create("first", "admin")
            deadline = time.monotonic() + 5
            while call(channel, "ServerInfo", pb.ServerInfoRequest(), "")[0] != NOBODY:
                assert time.monotonic() < deadline
            assert call(channel, "ServerInfo", pb.ServerInfoRequest(), secret.text)[0] == OK

            bearer = [("authorization", f"Bearer {secret.text}")]
            stub = rpc.RegistryStub(channel)
            append = pb.AppendRequest(
                recording_id=sent.id, measurements=[recording_messages.measurement_to_proto(row(1))]
            )
            assert stub.Append(append, timeout=20, metadata=bearer).committed == 1
            stream = stub.GetTrajectory(
                pb.GetTrajectoryRequest(recording_id=sent.id), timeout=20, metadata=bearer
            )
            assert next(stream).header.rows == 1
            url = f"http://{server.http_address.text}/api/v1/recordings/{sent.id}/events"
            with httpx.stream(
                "GET", url, headers={"Authorization": f"Bearer {secret.text}"}, timeout=20
            ) as followed:
                lines = followed.iter_lines()
                assert next(lines) == "event: rows"
                assert SqlTokenStore(console.engine).revoke(token.id)
                assert (
                    call(channel, "ServerInfo", pb.ServerInfoRequest(), secret.text)[0] == NOBODY
                )  # at once
                time.sleep(RECHECK_SECONDS)
                released.set()
                with pytest.raises(grpc.RpcError) as ended:
                    list(stream)
                assert (ended.value.code(), "was revoked" in ended.value.details()) == (
                    CODES[NOBODY],
                    True,
                )
                assert [line for line in lines if "was revoked" in line]
            assert (
                call(channel, "ServerInfo", pb.ServerInfoRequest(), "")[0] == NOBODY
            )  # a revoked token keeps it locked
    finally:
        console.close()
        server.stop()
