"""`flerm sweep`: loss against learning rate at many scales, trained plainly, matched and otherwise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flerm_client.cli.common import Json, Registry, complain
from flerm_core.errors import InvalidInput

if TYPE_CHECKING:
    from flerm_client.sweep.run import Progress


def sweep(
    what: Annotated[str, typer.Argument(help="A preset's name, or a TOML file.")],
    seeds: Annotated[int | None, typer.Option(help="Train each cell with this many; default: the sweep's own.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Trainings at a time; default: one per core.")] = None,
    on: Annotated[str, typer.Option(help="local, ray (a Ray cluster), or slurm (prints job scripts).")] = "local",
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Train a grid of learning rates, scales and seeds, plain and matched; what the registry holds is not run again.

    Example: flerm sweep decoder-width --registry file:///tmp/sweeps
    """
    run, definition, places = _parts()
    chosen = definition.load(what)
    if seeds is not None:
        from dataclasses import replace

        chosen = replace(chosen, seeds=seeds)
    outcome = run.run(chosen, registry, places.place_named(on, jobs), tell=_tell)
    for trial, why in outcome.failures.items():
        complain(f"failed: {_name(trial)}: {why}")
    if outcome.failures:
        raise typer.Exit(1)


def _tell(progress: Progress) -> None:
    left = "" if progress.seconds_left is None else f", about {progress.seconds_left / 60:.0f} min left"
    last = ""
    if progress.last is not None:
        trial, result = progress.last
        last = f"{_name(trial)}: loss {result.loss:.4f}, {result.seconds:.0f} s; "
    sys.stderr.write(f"{last}{progress.done} done, {progress.missing} or more to go{left}\n")


def _name(trial: Any) -> str:
    cell = "base" if trial.cell is None else trial.cell.label
    return f"{cell}, 2^{trial.place:+d}, seed {trial.seed}"


def _parts() -> tuple[Any, Any, Any]:
    try:
        from flerm_client.sweep import definition, places, run
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn"):
            raise
        raise InvalidInput(f"'flerm sweep' needs the package {error.name}: pip install 'flerm[workloads]'") from error
    return run, definition, places
