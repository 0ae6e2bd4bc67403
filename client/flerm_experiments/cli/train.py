"""`flerm train`: a built-in workload, trained plain, recorded or matched; one process, or all that torchrun starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flerm_core.errors import InvalidInput

if TYPE_CHECKING:
    from flerm_experiments.workloads.train_loop import Job, Result


def train(
    workload: Annotated[
        str,
        typer.Argument(
            help="resmlp, mlp, decoder, decoder-postnorm-affine, lora-gpt2, …: an unknown name lists all."
        ),
    ],
    lr: Annotated[
        float, typer.Option(help="The learning rate: the family's key when recording or matching.")
    ],
    width: Annotated[int, typer.Option(help="Multiple of the base model's width.")] = 1,
    depth: Annotated[int, typer.Option(help="Multiple of the base model's depth.")] = 1,
    init_scale: Annotated[
        float, typer.Option(help="Multiple of the blocks' initial weights.")
    ] = 1.0,
    rank: Annotated[int, typer.Option(help="Multiple of the base adapters' rank.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 300,
    seed: Annotated[int, typer.Option(help="Of initialisation, data order and probes.")] = 0,
    optimizer: Annotated[
        str,
        typer.Option(
            help="adam, adamw, sgd (momentum 0.9), adagrad, adamax, signsgd or adamw-0.1 (decay)."
        ),
    ] = "adam",
    schedule: Annotated[str, typer.Option(help="constant or cosine.")] = "constant",
    parametrization: Annotated[
        str, typer.Option(help="standard, mup or ntk (neural-tangent).")
    ] = "standard",
    record: Annotated[
        bool, typer.Option("--record", help="Keep this run's FSLRs in the registry.")
    ] = False,
    match: Annotated[
        bool, typer.Option("--match", help="Train at the rates that match the family's recordings.")
    ] = False,
    family: Annotated[str | None, typer.Option(help="Default: the workload's name.")] = None,
    registry: Annotated[
        str | None, typer.Option(help="grpc://HOST:PORT, grpcs://… or file:///FOLDER.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            help="Steps between measurements, default 100; with --match between matchings, default once, measured each 100."
        ),
    ] = None,
    clock: Annotated[
        str,
        typer.Option(
            help="With --match: targets are the base's at the same step, as many tokens, or as large a fraction of the run."
        ),
    ] = "step",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.")
    ] = None,
) -> None:
    """Train a built-in workload on this machine's own data; only those on named data sets and checkpoints download them.

    Example: flerm train resmlp --lr 1e-3 --record && flerm train resmlp --width 4 --lr 1e-3 --match. Under torchrun:
    torchrun --nproc-per-node 2 -m flerm_client.cli train resmlp --width 4 --lr 1e-3 --match
    """
    if record and match:
        raise InvalidInput(
            "--record and --match were both given, but a run is one of the two (a matched run reports itself too)"
        )
    # Here and not above: `flerm --help` must not wait for torch.
    try:
        from flerm_experiments.workloads import Scale
        from flerm_experiments.workloads.train_loop import Job
        from flerm_experiments.workloads.train_loop import train as run
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn"):
            raise
        raise InvalidInput(
            f"'flerm train' needs the package {error.name}: pip install 'flerm[workloads]'"
        ) from error
    job = Job(
        workload=workload,
        lr=lr,
        scale=Scale(width=width, depth=depth, init_scale=init_scale, rank=rank),
        steps=steps,
        seed=seed,
        optimizer=optimizer,
        schedule=schedule,
        parametrization=parametrization,
        mode="record" if record else "match" if match else "plain",
        family=family,
        registry=registry,
        every=every,
        clock=clock,
    )
    if int(os.environ.get("RANK", "0")) != 0:
        run(job)
        return
    result = _with_progress(job, run)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict()) + "\n")
    _report(result)


def _with_progress(job: Job, run: Any) -> Result:
    """Runs `job` with a bar on standard error, when that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(f"{job.workload}, {job.scale.label}", total=job.steps, loss=0.0)
        result: Result = run(
            job, on_step=lambda step, loss: progress.update(task, completed=step, loss=loss)
        )
    return result


def _report(result: Result) -> None:
    """One line on the run, and for a recorded or matched one the table of its tensors."""
    from rich.console import Console
    from rich.table import Table

    # Piped, the table keeps all its columns whatever the width that is assumed for a pipe.
    console = Console(width=None if Console().is_terminal else 120)
    job = result.job
    if result.fslr:
        title = f"{job.family_name} at learning rate {job.lr:g}: {job.mode}, ranks: {result.world}"
        table = Table("tensor", title=title)
        for heading in ("base FSLR", "measured FSLR", "multiplier", "learning rate"):
            table.add_column(heading, justify="right")
        for name, rate in result.learning_rates.items():
            cells = (
                result.targets.get(name),
                result.fslr.get(name),
                result.multipliers.get(name),
                rate,
            )
            table.add_row(name, *("–" if cell is None else f"{cell:.4g}" for cell in cells))
        console.print(table)
    console.print(
        f"{result.status}: {len(result.losses)} steps in {result.seconds:.1f} s, final loss {result.final_loss:.4f}",
        highlight=False,
    )
