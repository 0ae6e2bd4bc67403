"""`flerm import`: sends an exported family to a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flerm_client.cli.common import Json, Registry, print_json, say, server, transfer


def import_(
    folder: Annotated[Path, typer.Argument(help="folder that `flerm export FAMILY FOLDER` wrote")],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Send an exported family with all its recordings to a registry. Recordings that are there
    already stay as they are, so that an import that was interrupted can be repeated.

    Example: flerm import resmlp-2026 --registry grpc://127.0.0.1:50051
    """
    from flerm_client.registry.family_archive import import_family

    with server(registry) as connection, transfer(f"family of {folder}") as bar:
        name, recordings, rows = import_family(connection, folder, bar)
    if as_json:
        print_json({"family": name, "recordings": recordings, "rows": rows})
    else:
        say(f"{name}: {recordings} recordings with {rows} rows")
