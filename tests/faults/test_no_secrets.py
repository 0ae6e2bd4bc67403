"""A token's secret appears nowhere: not in logs, process lists, errors, files or pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest

from flerm_client import RegistryClient
from flerm_core.errors import FlermError
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.store.sql.store import open_store
from tests.conftest import RegistryProcess, StartRegistry
from tests.server.samples import NAMES, PARAMETERS

FAMILY = "secret/resmlp"


def command_lines() -> str:
    """What `ps` shows of every process, but for this test's own."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(each.read_bytes())
        except OSError:
            continue
    return b"\0".join(found).decode(errors="replace")


def run(token: str, registry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FLERM_TOKEN": token, "FLERM_REGISTRY": registry}
    command = [sys.executable, "-m", "flerm_client.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def told_to_clients(registry: RegistryProcess, secret: str) -> tuple[str, dict[str, str]]:
    """A recording that a client makes, and what can be seen of the client and its refusals."""
    seen = {}
    with RegistryClient(registry.address, secret) as client:
        recording = client.start_recording(FAMILY, 1e-3, PARAMETERS.names, PARAMETERS.shapes)
        client.append(recording, [1], [[1.0] * len(NAMES)])
        seen["client"] = repr(client) + repr(client.recording(recording)) + repr(client.info())
        seen["processes"] = command_lines()
    with grpc.insecure_channel(registry.grpc) as channel:
        for sent in (f"Bearer {secret}x", f"Basic {secret}", f"Bearer {secret} {secret}", secret):
            with pytest.raises(grpc.RpcError) as refused:
                rpc.RegistryStub(channel).ServerInfo(
                    pb.ServerInfoRequest(), timeout=20, metadata=[("authorization", sent)]
                )
            seen[f"refusal of {sent[:8]}"] = str(refused.value)
    return recording, seen


def told_by_commands(registry: RegistryProcess, secret: str, folder: Path) -> dict[str, str]:
    exported = run(secret, registry.address, "export", FAMILY, str(folder / "exported"))
    assert exported.returncode == 0, exported.stderr
    seen = {}
    for arguments in (
        ("doctor",),
        ("recordings", "--json"),
        ("best", "none/such"),
        ("export", "none", str(folder / "x")),
    ):
        ended = run(secret, registry.address, *arguments)
        seen[f"flerm {arguments[0]}"] = ended.stdout + ended.stderr
    return seen


def told_by_pages(registry: RegistryProcess, secret: str, recording: str) -> dict[str, str]:
    header = {"Authorization": f"Bearer {secret}"}
    origin = {"Origin": registry.http}
    seen = {}
    for path in (
        "/",
        f"/recordings/{recording}",
        "/metrics",
        "/openapi.json",
        f"/api/v1/recordings/{recording}",
        "/api/v1/none",
    ):
        seen[path] = httpx.get(f"{registry.http}{path}", headers=header).text
    for which, given in (("login", secret), ("wrong login", f"{secret}x")):
        answer = httpx.post(f"{registry.http}/login", data={"token": given}, headers=origin)
        seen[which] = answer.text + str(answer.headers)
    return seen


@pytest.mark.slow
def test_the_secret_is_nowhere_else(start_registry: StartRegistry, tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/registry.db")
    token, made = SqlTokenStore(store.engine).create("job", "admin")
    secret = made.text
    registry = start_registry(options=("--log-level", "debug"))
    recording, seen = told_to_clients(registry, secret)
    seen |= told_by_commands(registry, secret, tmp_path)
    seen |= told_by_pages(registry, secret, recording)
    SqlTokenStore(store.engine).revoke(token.id)
    with RegistryClient(registry.address, secret) as client, pytest.raises(FlermError) as refused:
        client.info()
    seen["revoked"] = str(refused.value)
    store.close()
    assert registry.stop() == 0
    seen["log"] = "".join(registry.output)
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert {".parquet", ".db"} <= {each.suffix for each in files}
    seen |= {str(each): each.read_bytes().decode("latin-1") for each in files}
    own = secret.split("_", 2)[2]
    assert len(own) == 43
    assert [where for where, text in seen.items() if own in text] == []
    assert token.id in seen["log"]  # whose calls they were is told
