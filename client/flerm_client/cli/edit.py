"""`flerm tag`, `flerm rename`, `flerm delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from flerm_client.cli.common import Json, Registry, client, print_json, tags_of
from flerm_client.cli.recordings import as_plain

Recording = Annotated[str, typer.Argument(metavar="RECORDING", help="its id")]


def tag(
    recording: Recording,
    tags: Annotated[list[str] | None, typer.Argument(help="key=value, any number")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="a key to take off, may be repeated")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Set and remove tags of a recording.

    Example: flerm tag 0b7f1f0e-57a3-4f0d-8a8e-6f2a9c1d3e5b purpose=baseline --remove draft
    """
    with client(registry) as connected:
        found = connected.tag(recording, tags_of(tags), remove=remove or ())
    if as_json:
        print_json(as_plain(found))
    else:
        typer.echo(
            f"{recording}: {', '.join(f'{key}={value}' for key, value in found.spec.tags.items()) or 'no tags'}"
        )


def rename(
    family: Annotated[str, typer.Argument(help="its name")],
    new_name: Annotated[str, typer.Argument(help="the name it gets")],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Give a family, with all its recordings, another name.

    Example: flerm rename mlp vision/mlp
    """
    with client(registry) as connected:
        found = connected.rename_family(family, new_name)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{family} is now {found.name}, {found.recordings} recordings")


def delete(
    recording: Recording,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Remove a recording with all its attempts, for good.

    Example: flerm delete 0b7f1f0e-57a3-4f0d-8a8e-6f2a9c1d3e5b --yes
    """
    with client(registry) as connected:
        found = connected.recording(recording)
        if not yes:
            question = f"remove the recording of {found.spec.family} at {found.spec.lr:g} with its {found.rows} rows?"
            typer.confirm(question, abort=True, err=True)
        rows = connected.delete(recording)
    if as_json:
        print_json({"id": recording, "rows": rows})
    else:
        typer.echo(f"{recording}: removed, {rows} rows")
