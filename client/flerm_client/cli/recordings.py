"""`flerm recordings`: lists recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from flerm_client.cli.common import (
    All,
    Json,
    JsonLines,
    Limit,
    Listing,
    Registry,
    Tag,
    client,
    local_time,
    plain,
)
from flerm_core.records.key_value_pairs import key_value_pairs
from flerm_core.records.recording import Recording, flat_fields

_COLUMNS: dict[str, Callable[[Recording], object]] = {
    "id": lambda each: each.spec.id,
    "family": lambda each: each.spec.family,
    "lr": lambda each: each.spec.lr,
    "seed": lambda each: each.spec.seed,
    "role": lambda each: f"{each.spec.role}/{each.spec.variant}",
    "optimizer": lambda each: each.spec.optimizer,
    "status": lambda each: each.status,
    "rows": lambda each: each.rows,
    "last step": lambda each: each.last_step,
    "final loss": lambda each: each.final_loss,
    "begun": lambda each: local_time(each.created_at),
    "by": lambda each: each.created_by,
}


def recordings(
    family: Annotated[
        str | None, typer.Argument(help="name of a family; default: all families")
    ] = None,
    lr_min: Annotated[float | None, typer.Option(help="lowest base learning rate")] = None,
    lr_max: Annotated[float | None, typer.Option(help="highest base learning rate")] = None,
    role: Annotated[str | None, typer.Option(help="only this role: base or scaled")] = None,
    variant: Annotated[
        str | None, typer.Option(help="only this variant: plain, matched, ...")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="only this optimiser, by its class name")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(help="only this status: running, interrupted, completed, diverged or failed"),
    ] = None,
    tag: Tag = None,
    limit: Limit = None,
    everything: All = False,
    registry: Registry = None,
    as_json: Json = False,
    as_lines: JsonLines = False,
) -> None:
    """List the recordings of a registry, newest first.

    Example: flerm recordings mlp --status completed --registry grpc://127.0.0.1:50051
    """
    with client(registry) as connected:
        listed = connected.recordings(
            family,
            lr_min=lr_min,
            lr_max=lr_max,
            role=role,
            variant=variant,
            optimizer=optimizer,
            status=status,
            tags=key_value_pairs("--tag", tag),
        )
        Listing(_COLUMNS, as_plain, "no recordings match").show(
            listed, limit=limit, everything=everything, as_json=as_json, as_lines=as_lines
        )


def as_plain(recording: Recording, *, parameters: bool = False) -> dict[str, Any]:
    """A recording in JSON's types: its specification and its state on one level.

    parameters: whether the parameter list is included.
    """
    content = flat_fields(recording)
    if not parameters:
        del content["parameters"]
    return {name: plain(value) for name, value in content.items()}
