"""`flerm best`: which learning rate to use."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from flerm_client.cli.common import (
    Json,
    Optimizer,
    Pick,
    Registry,
    Tag,
    client,
    number,
    print_json,
    print_table,
    say,
)
from flerm_core.records.key_value_pairs import key_value_pairs


def best(
    family: Annotated[str, typer.Argument(help="name of the family")],
    role: Annotated[
        str, typer.Option(help="only recordings of this role: base or scaled")
    ] = "base",
    variant: Annotated[
        str, typer.Option(help="only recordings of this variant: plain, matched, ...")
    ] = "plain",
    optimizer: Optimizer = "",
    tag: Tag = None,
    pick: Pick = None,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest",
            help="print the rates to try next as JSON; an empty list: no further rate is needed",
        ),
    ] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Say which learning rate to use: the optimum of a family's sweep, and the rate to try next.

    Example: flerm best mlp --registry grpc://127.0.0.1:50051
    """
    with client(registry) as connected:
        found = connected.best(
            family,
            role=role,
            variant=variant,
            optimizer=optimizer,
            tags=key_value_pairs("--tag", tag),
            pick=key_value_pairs("--pick", pick),
            cautions=not suggest,
        )
    if suggest:
        rates = found.suggested_rates
        answer = {"rates": rates, "settled": not rates, "lr": found.rate, "why": found.advice}
        print_json(answer | ({"experiment": found.experiment} if found.experiment else {}))
        return
    if as_json:
        print_json(found)
        return
    spread = (
        ""
        if math.isnan(found.optimum_spread)
        else f" ± {found.optimum_spread:.2f} octaves over seeds"
    )
    say(
        f"{found.family}: use lr {number(found.optimum)}{spread} "
        f"(best recorded: {number(found.lr)}, loss {number(found.loss)})"
    )
    if found.experiment:
        say(found.experiment)
    say(f"next: lr {number(found.next_lr)}. {found.advice}")
    for caution in found.cautions:
        say(f"caution: {caution}")
    rows = [
        (point.lr, point.loss, point.spread, point.seeds, point.diverged) for point in found.points
    ]
    print_table(("lr", "loss", "spread", "seeds", "diverged"), rows)
