"""`flerm families`: lists families."""

from __future__ import annotations

from typing import Annotated

import typer

from flerm_client.cli.common import (
    Json,
    Registry,
    client,
    local_time,
    number,
    print_json,
    print_table,
)


def families(
    prefix: Annotated[
        str, typer.Argument(help="beginning of the families' names; default: all families")
    ] = "",
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """List the families of a registry, with their recorded learning rates.

    Example: flerm families vision/ --registry grpc://127.0.0.1:50051
    """
    with client(registry) as connected:
        found = list(connected.families(prefix))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            family.name,
            family.recordings,
            ", ".join(number(lr) for lr in family.learning_rates) or "–",
            local_time(family.updated_at),
            family.description,
        )
        for family in found
    ]
    print_table(
        ("family", "recordings", "learning rates", "updated", "description"),
        rows,
        empty="no families yet",
    )
