"""`flerm doctor`: checks an installation and its registry."""

from __future__ import annotations

import os
import re
import socket
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import typer

from flerm_client.cli.common import Json, Registry, Spool, client, print_json, print_table
from flerm_client.registry.address import RegistryAddress, address_of, token_of
from flerm_core._files import open_private
from flerm_core.errors import FlermError, NotFound, PermissionDenied, Unauthenticated
from flerm_core.records.recording import now

_PACKAGES = ("flerm", "numpy", "grpcio", "protobuf", "torch")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")
_TRIED_BYTES = 1 << 18  # so many that a full disk or quota shows
_CLOCK_SECONDS = 30.0  # a clock that differs by more is reported


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    what: what was checked.
    state: "ok", "wrong", or "note" for what may be intended.
    says: what was found, and what to do about it.
    """

    what: str
    state: str
    says: str


def doctor(registry: Registry = None, spool: Spool = None, as_json: Json = False) -> None:
    """Check packages, address, proxies, network, TLS, token, versions and spool; say what is wrong.

    "ok" means that it was tried: by a call with the token, or a file in the spool folder.

    Exit code 1: something is wrong.

    Example: flerm doctor --registry grpc://127.0.0.1:50051
    """
    findings = [*_packages(), *_registry(registry), *_spool(spool)]
    if as_json:
        print_json(findings)
    else:
        rows = [(each.state, each.what, each.says) for each in findings]
        print_table(("", "looked at", "found"), rows)
    if any(each.state == "wrong" for each in findings):
        raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    for package in _PACKAGES:
        try:
            yield Finding(package, "ok", metadata.version(package))
        except metadata.PackageNotFoundError:
            if package == "flerm" and util.find_spec("flerm_client") is not None:
                yield Finding(package, "note", "run from a source tree")
            elif package == "torch":
                yield Finding(package, "note", "not installed; only training needs it")
            else:
                yield Finding(package, "wrong", "not installed")


def _registry(registry: str | None) -> Iterator[Finding]:
    try:
        address = address_of(registry)
    except FlermError as error:
        yield Finding("registry", "wrong", str(error))
        return
    yield Finding("registry", "ok", address.text)
    if address.folder is not None:
        yield _folder(registry, address.folder)
        return
    yield from _token(address)
    yield from _proxy(address)
    network = _network(address)
    yield from network
    if all(each.state != "wrong" for each in network):
        yield from _server(registry)


def _folder(registry: str | None, folder: Path) -> Finding:
    """Whether a registry that is a folder can be read and written."""
    try:
        with client(registry) as connected:
            families = sum(1 for _ in connected.families())
        _try_to_write(folder)
    except FlermError as error:
        return Finding("folder", "wrong", str(error))
    except OSError as error:
        return Finding("folder", "wrong", f"{folder} cannot be written ({error.strerror})")
    return Finding("folder", "ok", f"{folder} can be written; families: {families}")


def _try_to_write(folder: Path) -> None:
    """Writes a file as large as a few measurements, and removes it again.

    Raises `OSError` where the file cannot be written.
    """
    file = folder / f".doctor-{os.getpid()}"
    try:
        with open_private(file, "wb", follow=False) as opened:
            opened.write(bytes(_TRIED_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        file.unlink(missing_ok=True)


def _proxy(address: RegistryAddress) -> Iterator[Finding]:
    """The environment variable that leads gRPC through a proxy, if one does."""
    if address.local:  # the client uses no proxy on this machine
        return
    # gRPC obeys the first variable that is set, in the order of `_PROXIES`.
    leading = next((name for name in _PROXIES if os.environ.get(name)), None)
    if leading is None:
        return
    # A proxy's address may contain a password, which must not be printed.
    shown = re.sub(r"//.*@", "//", os.environ[leading])
    exempt = next((name for name in _NO_PROXIES if os.environ.get(name)), None)
    but = f", unless {exempt}={os.environ[exempt]} names it" if exempt else ""
    yield Finding(
        "proxy",
        "note",
        f"{leading}={shown}: gRPC goes to {address.target} through this proxy{but}; "
        f"no_grpc_proxy={address.target.rpartition(':')[0]} leads past it",
    )


def _token(address: RegistryAddress) -> Iterator[Finding]:
    try:
        token = token_of()()
    except Unauthenticated as error:
        yield Finding("token", "wrong", str(error))
        return
    if not token:
        yield Finding("token", "note", "none (FLERM_TOKEN, FLERM_TOKEN_FILE)")
        return
    named = os.environ.get("FLERM_TOKEN_FILE") if not os.environ.get("FLERM_TOKEN") else None
    if named and Path(named).expanduser().stat().st_mode & 0o077:
        yield Finding("token file", "note", f"other users can read {named}: chmod 600 it")
    try:
        address.refuse_open_token(token)
    except Unauthenticated as error:
        yield Finding("token", "wrong", str(error))
        return
    if address.scheme == "grpc" and not address.local:
        yield Finding(
            "token", "note", "is not encrypted on its way: use grpcs:// if the server speaks TLS"
        )


def _network(address: RegistryAddress) -> list[Finding]:
    host, _, port = address.target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3.0) as connected:
            found = [Finding("network", "ok", f"{address.target} accepts connections")]
            if address.scheme == "grpcs":
                found.append(_tls(connected, host.strip("[]")))
            return found
    except socket.gaierror as error:
        says = f"the name {host} is not known ({error.strerror})"
    except OSError as error:
        says = f"{address.target} does not accept connections ({error.strerror or error})"
    return [Finding("network", "wrong", says)]


def _tls(connected: socket.socket, host: str) -> Finding:
    # gRPC trusts the certificates that this variable names, so the check must trust them too.
    authorities = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH") or None
    context = ssl.create_default_context(cafile=authorities)
    try:
        with context.wrap_socket(connected, server_hostname=host) as secured:
            return Finding("TLS", "ok", str(secured.version()))
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason
        hint = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names the certificate of a private authority"
        return Finding("TLS", "wrong", f"{reason}; {hint}")
    except OSError as error:
        reason = error.strerror or str(error)
        says = f"the server ended the handshake ({reason}); does it speak TLS?"
        return Finding("TLS", "wrong", says)


def _server(registry: str | None) -> Iterator[Finding]:
    try:
        with client(registry) as connected:
            info = connected.info()
    except FlermError as error:
        yield Finding("server", "wrong", str(error))
        return
    versions = ", ".join(info.api_versions)
    says = f"flerm {info.version}, schema {info.schema_revision}, API {versions}"
    yield Finding("server", "ok", says)
    yield from _scope(registry)
    if "v1" not in info.api_versions:
        says = f"this client speaks v1, the server {versions}: use a matching flerm"
        yield Finding("API", "wrong", says)
    skew = 0.0 if info.now is None else (now() - info.now).total_seconds()
    if abs(skew) > _CLOCK_SECONDS:
        says = f"this machine is {skew:+.0f} s off the registry's clock"
        yield Finding("clock", "note", says)


def _scope(registry: str | None) -> Iterator[Finding]:
    """Whether the token may write, by a call for a random recording id, which changes nothing."""
    from flerm_client.registry.connection import Connection
    from flerm_proto.v1 import registry_pb2 as pb

    connection = Connection(address_of(registry), token := token_of())
    what = "token" if token() else "access"
    try:
        connection.unary("RenewLease", pb.RenewLeaseRequest(recording_id=str(uuid.uuid4())))
    except NotFound:
        yield Finding(what, "ok", "may read and write")
    except PermissionDenied as error:
        yield Finding(what, "note", f"may read, and not record: {error}")
    except FlermError as error:
        yield Finding(what, "wrong", str(error))
    finally:
        connection.close()


def _spool(spool: Path | None) -> Iterator[Finding]:
    from flerm_client.spool.paths import default_folder, own_folder, quarantined, spool_files
    from flerm_client.upload.spool_delivery import can_take_over

    try:
        folder = own_folder((spool or default_folder()).expanduser().absolute())
        _try_to_write(folder)
    except FlermError as error:
        yield Finding("spool", "wrong", str(error))
        return
    except OSError as error:
        yield Finding("spool", "wrong", f"{folder} cannot be written ({error.strerror})")
        return
    files = spool_files(folder)
    left = [path for path in files if can_take_over(path)[0]]
    says = f"{folder} can be written; files in use: {len(files) - len(left)}"
    yield Finding("spool", "ok", says)
    if left:
        says = f"{len(left)} recordings left behind: `flerm sync` sends them"
        yield Finding("spool", "note", says)
    for path, why in quarantined(folder):
        yield Finding("quarantine", "wrong", f"{path.name}: {why}")
