"""`flerm recordings`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from flerm_client.cli.common import (
    Json,
    Registry,
    Tag,
    client,
    moment,
    plain,
    print_json,
    print_table,
    tags_of,
)
from flerm_core.records.recording import Recording


def recordings(
    family: Annotated[str | None, typer.Argument(help="only of this family")] = None,
    lr_min: Annotated[float | None, typer.Option(help="lowest base learning rate")] = None,
    lr_max: Annotated[float | None, typer.Option(help="highest base learning rate")] = None,
    role: Annotated[str | None, typer.Option(help="base or scaled")] = None,
    variant: Annotated[str | None, typer.Option(help="plain, matched, ...")] = None,
    optimizer: Annotated[str | None, typer.Option(help="class name")] = None,
    status: Annotated[
        str | None, typer.Option(help="running, interrupted, completed, diverged or failed")
    ] = None,
    tag: Tag = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many")] = 100,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """The recordings of a registry, newest first.

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
            tags=tags_of(tag),
        )
        found = list(islice(listed, limit))
    if as_json:
        print_json([as_plain(recording) for recording in found])
        return
    rows = [
        (
            each.spec.id,
            each.spec.family,
            each.spec.lr,
            each.spec.seed,
            f"{each.spec.role}/{each.spec.variant}",
            each.spec.optimizer,
            each.status,
            each.rows,
            each.last_step,
            each.final_loss,
            moment(each.created_at),
            each.created_by,
        )
        for each in found
    ]
    print_table(
        (
            "id",
            "family",
            "lr",
            "seed",
            "role",
            "optimizer",
            "status",
            "rows",
            "last step",
            "final loss",
            "begun",
            "by",
        ),
        rows,
        empty="no recordings fit",
    )


def as_plain(recording: Recording, *, parameters: bool = False) -> dict[str, Any]:
    """A recording as JSON: its specification and its state on one level, with the parameter list only when asked for."""
    content: dict[str, Any] = plain(recording)
    spec = content.pop("spec")
    if not parameters:
        del spec["parameters"]
    return {**spec, **content}
