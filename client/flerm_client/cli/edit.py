"""`flerm tag`, `flerm rename`, `flerm delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from flerm_client.cli.common import Json, Registry, client, print_json, say
from flerm_client.cli.recordings import as_plain
from flerm_core.records.key_value_pairs import key_value_pairs

Recording = Annotated[str, typer.Argument(metavar="RECORDING", help="id of the recording")]


def tag(
    recording: Recording,
    tags: Annotated[list[str] | None, typer.Argument(help="tags to set, key=value each")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="key of a tag to remove; may be repeated")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Set and remove tags of a recording.

    Example: flerm tag 0b7f1f0e-57a3-4f0d-8a8e-6f2a9c1d3e5b purpose=baseline --remove draft
    """
    with client(registry) as connected:
        found = connected.tag(recording, key_value_pairs("tags", tags), remove=remove or ())
    if as_json:
        print_json(as_plain(found))
    else:
        pairs = ", ".join(f"{key}={value}" for key, value in found.spec.tags.items())
        say(f"{recording}: {pairs or 'no tags'}")


def rename(
    family: Annotated[str, typer.Argument(help="name of the family")],
    new_name: Annotated[str, typer.Argument(help="new name of the family")],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Rename a family together with its recordings.

    Example: flerm rename mlp vision/mlp
    """
    with client(registry) as connected:
        found = connected.rename_family(family, new_name)
    if as_json:
        print_json(found)
    else:
        say(f"{family} is now {found.name}, {found.recordings} recordings")


def delete(
    recording: Recording,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Delete a recording with all its attempts. It cannot be restored.

    Example: flerm delete 0b7f1f0e-57a3-4f0d-8a8e-6f2a9c1d3e5b --yes
    """
    with client(registry) as connected:
        found = connected.recording(recording)
        if not yes:
            typer.confirm(
                f"delete the recording of {found.spec.family} at lr {found.spec.lr:g} "
                f"with its {found.rows} rows?",
                abort=True,
                err=True,
            )
        rows = connected.delete(recording)
    if as_json:
        print_json({"id": recording, "rows": rows})
    else:
        say(f"{recording}: deleted, {rows} rows")
