"""`flerm families`: lists families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from flerm_client.cli.common import (
    All,
    Json,
    JsonLines,
    Limit,
    Listing,
    Registry,
    client,
    local_time,
    number,
    plain,
)
from flerm_core.records.recording import Family

MAX_RATES = 12  # a family with more learning rates has only the lowest and highest in the table


def _rates(family: Family) -> str:
    rates = family.learning_rates
    if len(rates) > MAX_RATES:
        return f"{len(rates)} from {number(rates[0])} to {number(rates[-1])}"
    return ", ".join(map(number, rates)) or "–"


_COLUMNS: dict[str, Callable[[Family], object]] = {
    "family": lambda each: each.name,
    "recordings": lambda each: each.recordings,
    "learning rates": _rates,
    "updated": lambda each: local_time(each.updated_at),
    "description": lambda each: each.description,
}


def families(
    prefix: Annotated[
        str, typer.Argument(help="beginning of the families' names; default: all families")
    ] = "",
    limit: Limit = None,
    everything: All = False,
    registry: Registry = None,
    as_json: Json = False,
    as_lines: JsonLines = False,
) -> None:
    """List the families of a registry, with their recorded learning rates.

    Example: flerm families vision/ --registry grpc://127.0.0.1:50051
    """
    with client(registry) as connected:
        Listing(_COLUMNS, plain, "no families yet").show(
            connected.families(prefix),
            limit=limit,
            everything=everything,
            as_json=as_json,
            as_lines=as_lines,
        )
