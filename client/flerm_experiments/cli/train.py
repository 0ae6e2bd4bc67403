"""`flerm train`: trains a built-in workload, plain, recorded or matched.

It runs in one process, or in all processes that torchrun starts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flerm_core.errors import InvalidInput

if TYPE_CHECKING:
    from flerm_experiments.workloads.train_loop import Job, Result


WorkloadName = Annotated[
    str,
    typer.Argument(
        help="resmlp, mlp, decoder, decoder-postnorm-affine, lora-gpt2, …; an unknown name lists "
        "all."
    ),
]
LearningRate = Annotated[
    float,
    typer.Option(help="The learning rate, under which a run is recorded or finds its targets."),
]
Width = Annotated[int, typer.Option(help="Multiple of the base model's width.")]
Depth = Annotated[int, typer.Option(help="Multiple of the base model's depth.")]
InitScale = Annotated[float, typer.Option(help="Multiple of the blocks' initial weights.")]
Batch = Annotated[int, typer.Option(help="Multiple of the examples of one step.")]
LoRARank = Annotated[int, typer.Option(help="Multiple of the base adapters' LoRA rank.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
Seed = Annotated[int, typer.Option(help="Seed of initialisation, data order and probes.")]
OptimizerName = Annotated[
    str,
    typer.Option(
        help="adam, adamw, adamw-0.1 and adamw-1 (decay), sgd (momentum 0.9), adagrad, adamax, "
        "signsgd or muon (beside AdamW)."
    ),
]
Schedule = Annotated[str, typer.Option(help="constant, cosine or warmup (a tenth of the run).")]
Parametrization = Annotated[str, typer.Option(help="standard, mup or ntk (neural-tangent).")]
Record = Annotated[bool, typer.Option("--record", help="Keep this run's FSLRs in the registry.")]
Match = Annotated[
    bool, typer.Option("--match", help="Train at the rates that match the family's recordings.")
]
Family = Annotated[str | None, typer.Option(help="Default: the workload's name.")]
RegistryUrl = Annotated[
    str | None, typer.Option(help="grpc://HOST:PORT, grpcs://… or file:///FOLDER.")
]
Every = Annotated[
    int | None,
    typer.Option(
        help="Steps between measurements, default 100. With --match: steps between matchings; "
        "default: matched once, measured every 100 steps."
    ),
]
Clock = Annotated[
    str,
    typer.Option(
        help="With --match: targets are the base's at the same step, after as many tokens, or at "
        "the same fraction of the run (step, tokens, fraction)."
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")]


def train(
    workload: WorkloadName,
    lr: LearningRate,
    width: Width = 1,
    depth: Depth = 1,
    init_scale: InitScale = 1.0,
    rank: LoRARank = 1,
    batch: Batch = 1,
    steps: Steps = 300,
    seed: Seed = 0,
    optimizer: OptimizerName = "adam",
    schedule: Schedule = "constant",
    parametrization: Parametrization = "standard",
    record: Record = False,
    match: Match = False,
    family: Family = None,
    registry: RegistryUrl = None,
    every: Every = None,
    clock: Clock = "step",
    json_file: JsonFile = None,
) -> None:
    """Train a built-in workload, by default on data that this machine has. Only workloads on named
    data sets and checkpoints download these.

    Example: flerm train resmlp --lr 1e-3 --record && flerm train resmlp --width 4 --lr 1e-3
    --match. Under torchrun: torchrun --nproc-per-node 2 -m flerm_client.cli train resmlp --width 4
    --lr 1e-3 --match
    """
    if record and match:
        raise InvalidInput(
            "--record and --match were both given, but a run is one of the two (a matched run "
            "reports itself too)"
        )
    # Late, because `flerm --help` must not wait for torch.
    from flerm_experiments.workloads import train_loop as loop
    from flerm_experiments.workloads.base import Scale

    job = loop.Job(
        workload=workload,
        lr=lr,
        scale=Scale(width=width, depth=depth, init_scale=init_scale, rank=rank, batch=batch),
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
        loop.train(job)
        return
    result = _with_progress(job, loop.train)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict()) + "\n")
    _report(result)


def _with_progress(job: Job, run: Any) -> Result:
    """Runs `job`, with a progress bar where standard error is a terminal."""
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
    """Prints the outcome in one line, for a recorded or matched run below a table of tensors."""
    from rich.console import Console
    from rich.table import Table

    # For a pipe rich assumes 80 columns, and would cut the table.
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
        f"{result.status}: {len(result.losses)} steps in {result.seconds:.1f} s, final loss "
        f"{result.final_loss:.4f}",
        highlight=False,
    )
