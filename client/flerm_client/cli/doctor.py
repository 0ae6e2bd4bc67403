"""`flerm doctor`: what is wrong with this setup?"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import typer

from flerm_client.cli.common import Json, Registry, Spool, client, print_json, print_table
from flerm_client.registry.address import RegistryAddress, address_of, token_of
from flerm_core.errors import FlermError, Unauthenticated
from flerm_core.records.recording import now


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `state`: ok, note or wrong."""

    what: str
    state: str
    says: str


def doctor(registry: Registry = None, spool: Spool = None, as_json: Json = False) -> None:
    """Looks at packages, address, network, TLS, token, versions, and the spool; says what is wrong and what to do.

    Ends with exit code 1 when something is.

    Example: flerm doctor --registry grpc://127.0.0.1:50051
    """
    findings = [*_packages(), *_registry(registry), *_spool(spool)]
    if as_json:
        print_json(findings)
    else:
        print_table(
            ("", "looked at", "found"), [(each.state, each.what, each.says) for each in findings]
        )
    if any(each.state == "wrong" for each in findings):
        raise typer.Exit(1)


def _packages() -> list[Finding]:
    found = []
    for package, needed in (
        ("flerm", True),
        ("numpy", True),
        ("grpcio", True),
        ("protobuf", True),
        ("torch", False),
    ):
        try:
            found.append(Finding(package, "ok", metadata.version(package)))
        except metadata.PackageNotFoundError:
            source = package == "flerm" and util.find_spec("flerm_client") is not None
            says = (
                "run from a source tree"
                if source
                else "not installed" + ("" if needed else "; only training needs it")
            )
            found.append(Finding(package, "wrong" if needed and not source else "note", says))
    return found


def _registry(registry: str | None) -> list[Finding]:
    try:
        address = address_of(registry)
    except FlermError as error:
        return [Finding("registry", "wrong", str(error))]
    found = [Finding("registry", "ok", address.text)]
    if address.folder is not None:
        there = address.folder.is_dir()
        return [
            *found,
            Finding(
                "folder",
                "ok" if there else "wrong",
                f"{address.folder} {'is there' if there else 'is not there'}",
            ),
        ]
    try:
        token = token_of()()
        found.append(
            Finding(
                "token",
                "ok" if token else "note",
                "given" if token else "none (FLERM_TOKEN, FLERM_TOKEN_FILE)",
            )
        )
        if token and address.scheme == "grpc" and not address.local:
            found.append(
                Finding(
                    "token",
                    "note",
                    "is not encrypted on its way: use grpcs:// if the server speaks TLS",
                )
            )
    except Unauthenticated as error:
        found.append(Finding("token", "wrong", str(error)))
    network = _network(address)
    found += network
    if any(each.state == "wrong" for each in network):
        return found
    try:
        with client(registry) as connected:
            info = connected.info()
    except FlermError as error:
        return [*found, Finding("server", "wrong", str(error))]
    found.append(
        Finding(
            "server",
            "ok",
            f"flerm {info.version}, schema {info.schema_revision}, API {', '.join(info.api_versions)}",
        )
    )
    if "v1" not in info.api_versions:
        found.append(
            Finding(
                "API",
                "wrong",
                f"this client speaks v1, the server {', '.join(info.api_versions)}: use a matching flerm",
            )
        )
    if info.now is not None and abs(skew := (now() - info.now).total_seconds()) > 30:
        found.append(
            Finding("clock", "note", f"this machine is {skew:+.0f} s off the registry's clock")
        )
    return found


def _network(address: RegistryAddress) -> list[Finding]:
    host, _, port = address.target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3.0) as connected:
            found = [Finding("network", "ok", f"{address.target} accepts connections")]
            if address.scheme == "grpcs":
                found.append(_tls(connected, host.strip("[]")))
            return found
    except socket.gaierror as error:
        return [Finding("network", "wrong", f"the name {host} is not known ({error.strerror})")]
    except OSError as error:
        return [
            Finding(
                "network",
                "wrong",
                f"{address.target} does not accept connections ({error.strerror or error})",
            )
        ]


def _tls(connected: socket.socket, host: str) -> Finding:
    # gRPC reads this variable for a private authority; the check must judge by the same.
    context = ssl.create_default_context(
        cafile=os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or None
    )
    try:
        with context.wrap_socket(connected, server_hostname=host) as secured:
            return Finding("TLS", "ok", str(secured.version()))
    except ssl.SSLError as error:
        hint = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names the certificate of a private authority"
        return Finding(
            "TLS", "wrong", f"{getattr(error, 'verify_message', '') or error.reason}; {hint}"
        )
    except OSError as error:
        return Finding(
            "TLS",
            "wrong",
            f"the server ended the handshake ({error.strerror or error}); does it speak TLS?",
        )


def _spool(spool: Path | None) -> list[Finding]:
    from flerm_client.spool.paths import default_folder, quarantined, spool_files
    from flerm_client.upload.spool_delivery import can_take_over

    folder = (spool or default_folder()).expanduser().absolute()
    files = spool_files(folder)
    left = [path for path in files if can_take_over(path)[0]]
    found = [Finding("spool", "ok", f"{folder}: {len(files) - len(left)} in use")]
    if left:
        found.append(
            Finding("spool", "note", f"{len(left)} recordings left behind: `flerm sync` sends them")
        )
    found += [
        Finding("quarantine", "wrong", f"{path.name}: {why}") for path, why in quarantined(folder)
    ]
    return found
