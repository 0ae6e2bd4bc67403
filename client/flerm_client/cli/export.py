"""`flerm export`: a recording's trajectory as a file, or a family as a folder."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from flerm_client.cli.common import Json, Registry, client, plain, print_json, say, server, transfer
from flerm_client.cli.recordings import as_plain
from flerm_core._files import atomic_path, atomic_write, open_private
from flerm_core.csv_cells import text_cell
from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Recording
from flerm_core.trajectory import Trajectory

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FORMATS = (".npz", ".csv", ".json")


def export(
    recording: Annotated[
        str,
        typer.Argument(metavar="RECORDING|FAMILY", help="id of a recording, or name of a family"),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            help="for a recording: .npz (read by Trajectory.load), .csv or .json; "
            "for a family: a new folder, or that of an export that was interrupted"
        ),
    ],
    pattern: Annotated[
        str, typer.Option(help="only parameters that match this shell-style pattern")
    ] = "",
    first_step: Annotated[int | None, typer.Option(help="first step to export")] = None,
    last_step: Annotated[int | None, typer.Option(help="last step to export")] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Write a recording's trajectory to a file, or a family to a folder.

    A trajectory is written as npz, CSV (one column per parameter) or JSON. A family is written with
    all its recordings as Parquet, which DuckDB, Polars and pandas read as one table; `flerm import`
    sends the folder to another registry. An export that was interrupted goes on when it is
    repeated.

    Example: flerm export 6a1f0c1e-8a57-4b6e-9f0e-0c5d3c1c9a11 base.npz

    Example: flerm export team/resmlp resmlp-2026
    """
    if not _ID.fullmatch(recording):
        _export_family(recording, file, registry, as_json)
        return
    if file.suffix not in _FORMATS:
        raise InvalidInput(
            f"file: {str(file)!r} has an unknown ending; allowed are {', '.join(_FORMATS)}"
        )
    with client(registry) as connected, transfer(f"recording {recording}") as bar:
        found = connected.recording(recording)
        trajectory = connected.trajectory(
            recording, pattern=pattern, first_step=first_step, last_step=last_step, progress=bar
        )
    try:
        _write(file, found, trajectory)
    except OSError as error:
        raise InvalidInput(f"file: {file} cannot be written ({error.strerror})") from error
    if as_json:
        print_json(
            {"file": str(file), "rows": len(trajectory), "parameters": len(trajectory.names)}
        )
    else:
        say(f"{file}: {len(trajectory)} rows of {len(trajectory.names)} parameters")


def _export_family(name: str, folder: Path, registry: str | None, as_json: bool) -> None:
    from flerm_client.registry.family_archive import export_family

    with server(registry) as connection, transfer(f"family {name}") as bar:
        recordings, rows = export_family(connection, name, folder, bar)
    if as_json:
        print_json({"folder": str(folder), "recordings": recordings, "rows": rows})
    else:
        say(f"{folder}: {recordings} recordings with {rows} rows")


def _write(file: Path, recording: Recording, trajectory: Trajectory) -> None:
    if file.suffix == ".npz":
        trajectory.save(file)
    elif file.suffix == ".csv":
        with atomic_path(file) as partial, open_private(partial, "w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(
                ["step", "loss", "learning_rate", "tokens", *map(text_cell, trajectory.names)]
            )
            for row in trajectory:
                values = ["" if value != value else value for value in row.values.tolist()]
                logged = [
                    "" if value is None else value
                    for value in (row.loss, row.learning_rate, row.tokens)
                ]
                writer.writerow([row.step, *logged, *values])
    else:
        rows = [
            {
                "step": row.step,
                "loss": row.loss,
                "learning_rate": row.learning_rate,
                "tokens": row.tokens,
                "fslr": plain(row.values),
            }
            for row in trajectory
        ]
        content = {
            **as_plain(recording),
            "names": trajectory.names,
            "shapes": trajectory.shapes,
            "bands": trajectory.bands,
        }
        atomic_write(file, json.dumps({**content, "rows": rows}) + "\n")
