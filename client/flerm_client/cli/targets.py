"""`flerm targets`: target FSLRs of a family."""

from __future__ import annotations

from typing import Annotated

import typer

from flerm_client.cli.common import (
    Depth,
    Json,
    Optimizer,
    Policy,
    Registry,
    Tag,
    client,
    number,
    print_json,
    print_table,
    say,
)
from flerm_core.records.key_value_pairs import key_value_pairs


def targets(
    family: Annotated[str, typer.Argument(help="name of the family to match")],
    lr: Annotated[float, typer.Argument(help="base learning rate")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="a parameter of the model to match; may be repeated; default: the base's"
        ),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(help="step to read the targets at; default: the first measured one"),
    ] = None,
    policy: Policy = "interpolate",
    depth: Depth = "",
    optimizer: Optimizer = "",
    tag: Tag = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Print the target FSLRs of a family at a base learning rate.

    Example: flerm targets mlp 4e-3 --step 100 --registry grpc://127.0.0.1:50051
    """
    with client(registry) as connected:
        found = connected.targets(
            family,
            lr,
            names=name,
            step=step,
            policy=policy,
            depth=depth,
            optimizer=optimizer,
            tags=key_value_pairs("--tag", tag),
        )
    if as_json:
        content = {field: getattr(found, field) for field in found.__dataclass_fields__}
        print_json({**content, "targets": dict(found)})
        return
    rates = ", ".join(map(number, found.source_learning_rates))
    say(
        f"{found.family} at lr {number(found.lr)}: from {len(found.sources)} recordings "
        f"at lr {rates}, {found.seeds} seeds, step {found.steps[0]}, digest {found.digest[:12]}"
    )
    for remark in found.remarks:
        say(remark)
    rows = [
        (parameter, value, float(found.spread[0][at]))
        for at, (parameter, value) in enumerate(found.items())
    ]
    print_table(("parameter", "target FSLR", "spread (ln)"), rows)
