"""`flerm sync`: delivers the recordings that are left in a spool folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flerm_client.cli.common import Json, Registry, Spool, complain, print_json, say
from flerm_core.errors import FlermError, Refused, Unauthenticated

if TYPE_CHECKING:
    from flerm_client.registry.address import RegistryAddress


def sync(
    registry: Registry = None,
    spool: Spool = None,
    take: Annotated[
        bool,
        typer.Option(
            "--take", help="also send files of another host, whose process may still be running"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Send the measurements that runs have left in the spool folder to the registry of each run, or
    to the registry that --registry names. The token goes only to the registry that --registry or
    FLERM_REGISTRY names.

    Files of running processes are skipped. A file is removed when the registry has all of it; a
    folder that is itself a registry (file:///) keeps its files. Exit code 4: a registry cannot be
    reached. Exit code 5: a token was refused (the file stays), or measurements were refused for
    good (their file is moved to quarantine/).

    Example: flerm sync --registry grpc://127.0.0.1:50051
    """
    from flerm_client.spool.paths import default_folder, own_folder, spool_files

    folder = own_folder((spool or default_folder()).expanduser().absolute())
    results = [_send(path, registry, take) for path in spool_files(folder)]
    if as_json:
        print_json({"spool": str(folder), "files": results})
    else:
        for result in results:
            rows = f"{result['rows']} measurement{'' if result['rows'] == 1 else 's'}"
            line = f"{result['file']}: {result['outcome']}, {rows}"
            say(f"{line} ({result['why']})" if result["why"] else line)
        if not results:
            say(f"nothing is left in {folder}")
    if any(result["outcome"] == "refused" for result in results):
        complain(f"what was refused is in {folder / 'quarantine'}, with the reasons")
    codes = {result["code"] for result in results}
    if codes - {0}:
        raise typer.Exit(Refused.exit_code if Refused.exit_code in codes else max(codes))


def _send(path: Path, registry: str | None, take: bool) -> dict[str, Any]:
    from flerm_client.registry.address import address_of, token_of
    from flerm_client.registry.connection import Connection
    from flerm_client.spool.paths import remove
    from flerm_client.spool.reader import read_origin
    from flerm_client.upload.spool_delivery import (
        SpoolDelivery,
        can_take_over,
        is_abandoned_empty,
    )
    from flerm_core.records.recording import Ending

    def result(outcome: str, rows: int = 0, why: str = "", code: int = 0) -> dict[str, Any]:
        return {"file": path.name, "outcome": outcome, "rows": rows, "why": why, "code": code}

    if is_abandoned_empty(path):
        remove(path)
        return result("removed", why="the file is empty: the run ended before it could write")
    origin = read_origin(path)
    free, why = can_take_over(path)
    if not free and not (take and origin is not None and not origin.owner.on_this_machine):
        return result("in use", why=why)
    meant = origin.registry if origin is not None else ""
    folder_registry = meant.startswith("file:")
    if registry is None and folder_registry:
        return result(
            "kept", why="its folder is its registry; --registry names a server to send to"
        )
    acknowledged, withheld = 0, False
    try:
        address = address_of(registry or meant or None)
        if address.folder is not None:
            return result("kept", why=f"{address.text} is a folder, not a server")
        token = token_of()
        withheld = not _is_configured(address, registry) and bool(token())
        connection = Connection(address, (lambda: "") if withheld else token, patience=2.0)
        unfinished = Ending(status="interrupted")
        delivery = SpoolDelivery(path, connection, unfinished=unfinished, keep=folder_registry)
        try:
            while delivery.advance():
                pass
        finally:
            acknowledged = delivery.progress.acknowledged
            connection.close()
    except FlermError as error:
        says = str(error)
        if withheld and isinstance(error, Unauthenticated):
            says += f"; the token was not sent: only --registry {meant} or FLERM_REGISTRY allows it"
        return result("failed", acknowledged, says, error.exit_code)
    if delivery.quarantined is not None:
        return result("refused", acknowledged, delivery.progress.problem, Refused.exit_code)
    return result("delivered", acknowledged)


def _is_configured(address: RegistryAddress, registry: str | None) -> bool:
    """Whether --registry or FLERM_REGISTRY names `address`.

    Only such a registry may get the user's token. A spool file names an address too, but another
    user may have written the file.
    """
    from flerm_client.registry.address import address_of

    if not (registry or os.environ.get("FLERM_REGISTRY")):
        return False
    named = address_of(registry)
    return (named.scheme, named.target) == (address.scheme, address.target)
