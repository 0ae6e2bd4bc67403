"""TLS on both ports, with files that are renewed while the server runs, and a private authority."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from flerm_server.cli import app
from tests.conftest import RegistryProcess, StartRegistry

SCRIPT = Path(__file__).parents[2] / "deploy" / "tls" / "private-ca.sh"


def certify(folder: Path) -> None:
    """What an operator runs, for a first certificate and for the next ones."""
    subprocess.run(
        ["bash", SCRIPT, folder, "localhost", "127.0.0.1"], check=True, capture_output=True
    )


@pytest.fixture
def secured(
    tmp_path: Path, start_registry: StartRegistry
) -> Iterator[tuple[RegistryProcess, Path]]:
    folder = tmp_path / "tls"
    certify(folder)
    registry = start_registry(
        grpc="0.0.0.0:0",
        http="0.0.0.0:0",
        options=(
            "--tls-cert",
            f"{folder}/server.pem",
            "--tls-key",
            f"{folder}/server.key",
            "--insecure",
        ),
    )
    yield registry, folder


def ask(
    registry: RegistryProcess, spool: Path, roots: Path | None
) -> subprocess.CompletedProcess[str]:
    """`flerm doctor` in a process of its own: gRPC reads the authority once."""
    environment = os.environ | {"FLERM_SPOOL": str(spool)}
    if roots is not None:
        environment["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(roots)
    address = f"grpcs://localhost:{registry.grpc.rpartition(':')[2]}"
    command = [sys.executable, "-m", "flerm_client.cli", "doctor", "--registry", address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def shown(port: str, roots: Path, protocol: str) -> bytes:
    """The certificate that a port shows to who trusts the authority."""
    context = ssl.create_default_context(cafile=str(roots))
    context.set_alpn_protocols([protocol])
    plain = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
    with context.wrap_socket(plain, server_hostname="localhost") as connection:
        found = connection.getpeercert(binary_form=True)
        assert found is not None and connection.version() in ("TLSv1.2", "TLSv1.3")
        return found


def test_both_ports_speak_tls_and_take_up_a_renewed_certificate(
    secured: tuple[RegistryProcess, Path],
):
    registry, folder = secured
    (said,) = (line for line in registry.output if line.startswith("registry: "))
    assert (
        said
        == f"registry: grpcs://{registry.grpc}  https://{registry.http.removeprefix('http://')}/\n"
    )
    ports = {registry.grpc.rpartition(":")[2]: "h2", registry.http.rpartition(":")[2]: "http/1.1"}
    first = {shown(port, folder / "ca.pem", protocol) for port, protocol in ports.items()}
    assert len(first) == 1
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    url = f"https://localhost:{registry.http.rpartition(':')[2]}"
    ready = httpx.get(f"{url}/readyz", verify=context)
    assert (ready.status_code, ready.headers["strict-transport-security"]) == (
        200,
        "max-age=31536000",
    )
    assert ask(registry, folder / "spool", folder / "ca.pem").returncode == 0
    untrusted = ask(registry, folder / "spool", None)
    assert (untrusted.returncode, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names" in untrusted.stdout) == (
        1,
        True,
    )

    certify(folder)
    second = {shown(port, folder / "ca.pem", protocol) for port, protocol in ports.items()}
    assert len(second) == 1 and second != first

    (folder / "server.pem").write_text(
        "half a certific"
    )  # such a pair is not taken, and the last good one stays
    assert {shown(port, folder / "ca.pem", protocol) for port, protocol in ports.items()} == second
    assert '"event": "certificate not renewed, the old one serves on"' in "".join(registry.output)


def test_without_tokens_or_tls_no_other_address_is_served(tmp_path: Path):
    def refusal(*options: str) -> tuple[int, str]:
        ended = CliRunner().invoke(
            app, ["serve", "--grpc", "127.0.0.1:0", "--db", f"sqlite:///{tmp_path}/r.db", *options]
        )
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        return ended.exit_code, ended.stderr

    certify(tmp_path)
    pair = ("--tls-cert", f"{tmp_path}/server.pem", "--tls-key", f"{tmp_path}/server.key")
    for options in (pair, ("--tls-terminated-upstream",), ()):
        code, sentence = refusal("--http", "0.0.0.0:0", *options)
        assert (
            code,
            "it has no tokens; make the first with `flerm token create NAME --scope admin`"
            in sentence,
        ) == (5, True)
    made = CliRunner().invoke(
        app, ["token", "create", "root", "--scope", "admin", "--db", f"sqlite:///{tmp_path}/r.db"]
    )
    assert (made.exit_code, made.stdout.startswith("flerm_")) == (0, True)
    code, sentence = refusal("--http", "0.0.0.0:0")
    assert (code, "give --tls-cert and --tls-key" in sentence) == (5, True)
    code, sentence = refusal("--http", "127.0.0.1:0", *pair[:2])
    assert (code, "tls_cert, tls_key: one is given without the other" in sentence) == (2, True)
    code, sentence = refusal(
        "--http",
        "127.0.0.1:0",
        "--tls-cert",
        f"{tmp_path}/ca.pem",
        "--tls-key",
        f"{tmp_path}/server.key",
    )
    assert (code, "no certificate and its key in PEM" in sentence) == (2, True)
