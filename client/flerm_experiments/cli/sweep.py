"""`flerm sweep`: loss against learning rate at many scales, trained plainly, matched and otherwise."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flerm_client.cli.common import Json, Registry, client, complain, print_json, print_table, say
from flerm_core.errors import InvalidInput

if TYPE_CHECKING:
    from flerm_experiments.sweep.runner import SweepProgress
    from flerm_experiments.sweep.spec import Sweep
    from flerm_experiments.sweep.trials import Trial


def sweep(
    what: Annotated[
        str, typer.Argument(help="A preset (see --list), or a TOML file.", show_default=False)
    ] = "",
    seeds: Annotated[
        int | None,
        typer.Option(help="Train each cell with this many; default: the sweep's own.", min=1),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Trainings at a time; default: one per core.", min=1)
    ] = None,
    on: Annotated[
        str, typer.Option(help="local, ray (a Ray cluster) or slurm (prints a script for sbatch).")
    ] = "local",
    cell: Annotated[
        str | None, typer.Option(help="Only a part: base, or a cell's number from 0.")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing; print what the registry holds.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The same as a section of a Markdown document.")
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Train nothing; draw what the registry holds into this folder."),
    ] = None,
    ending: Annotated[
        str, typer.Option(help="of figures: png, svg, html or json (plotly's own)")
    ] = "png",
    listing: Annotated[bool, typer.Option("--list", help="Name the presets.")] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Train a grid of learning rates, scales and seeds, plain and matched; what the registry holds is not run again.

    Example: flerm sweep decoder-width --registry file:///tmp/sweeps. On SLURM: flerm sweep decoder-width --on slurm --cell base
    -r ADDRESS | sbatch, and once that is done flerm sweep decoder-width --on slurm -r ADDRESS | sbatch
    """
    spec = _spec_module()
    if listing:
        for name in spec.presets():
            say(f"{name}: {spec.load(name).title}")
        return
    chosen: Sweep = spec.load(what)
    if seeds is not None:
        chosen = replace(chosen, seeds=seeds)
    if on == "slurm":
        from flerm_experiments.sweep.slurm_executor import script

        say(
            script(chosen, what, registry or os.environ.get("FLERM_REGISTRY"), cell=cell, jobs=jobs)
        )
        return
    if cell is not None:
        chosen = chosen.part(cell)
    failures = {} if table or markdown or figure is not None else _train(chosen, registry, on, jobs)
    if figure is not None:
        _draw(chosen, registry, figure, ending)
    else:
        _print(chosen, registry, markdown=markdown, as_json=as_json)
    if failures:
        for trial, why in failures.items():
            complain(f"failed: {_name(trial)}: {why}")
        complain(
            f"{len(failures)} trainings failed; the same command tries them again and nothing else"
        )
        raise typer.Exit(1)


def _spec_module() -> Any:
    """The module that knows sweeps, once what it needs is known to be there."""
    try:
        from flerm_experiments.sweep import spec
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn"):
            raise
        raise InvalidInput(
            f"'flerm sweep' needs the package {error.name}: pip install 'flerm[workloads]'"
        ) from error
    return spec


def _train(chosen: Sweep, registry: str | None, on: str, jobs: int | None) -> dict[Trial, str]:
    """Carries it out; what failed, with the reason. Progress goes to standard error, a line for each training."""
    from flerm_experiments.sweep.executors import executor_named
    from flerm_experiments.sweep.runner import run

    return run(chosen, registry, executor_named(on, jobs), tell=_tell).failures


def _tell(progress: SweepProgress) -> None:
    left = (
        "" if progress.seconds_left is None else f", about {_duration(progress.seconds_left)} left"
    )
    last = ""
    if progress.last is not None:
        trial, result = progress.last
        outcome = f"loss {result.loss:.4f}" if result.status == "completed" else result.status
        last = f"{_name(trial)}: {outcome}, {result.seconds:.0f} s; "
    failed = f", {len(progress.failures)} failed" if progress.failures else ""
    sys.stderr.write(
        f"{last}{progress.done} done{failed}, {progress.missing} or more to go{left}\n"
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def _name(trial: Trial) -> str:
    cell = "base" if trial.cell is None else trial.cell.label
    measured = f", {trial.measured}" if trial.measured else ""
    return f"{cell}{measured}, centre · 2^{trial.place}, seed {trial.seed}"


def _print(chosen: Sweep, registry: str | None, *, markdown: bool, as_json: bool) -> None:
    from flerm_experiments.sweep import registry_state, results

    found = results.rows(chosen, registry_state.finished(chosen, registry))
    if as_json:
        print_json(found)
    elif markdown:
        say(results.markdown(chosen, found))
    else:
        print_table(results.HEADINGS, [row.texts for row in found], title=chosen.title)


def _draw(chosen: Sweep, registry: str | None, folder: Path, ending: str) -> None:
    from flerm_client.cli.plot import FORMATS, render
    from flerm_experiments.sweep import registry_state, results
    from flerm_experiments.sweep.figures import drawings

    suffix = f".{ending}"
    if suffix not in FORMATS:
        raise InvalidInput(
            f"--ending: {ending!r} is unknown; allowed are {', '.join(each[1:] for each in FORMATS)}"
        )
    entries = registry_state.finished(chosen, registry)
    found = results.rows(chosen, entries)
    folder.mkdir(parents=True, exist_ok=True)
    with client(registry) as connected:
        figures = drawings(chosen, entries, found, connected.trajectory)
    for name, each in figures.items():
        path = folder / f"{chosen.name}-{name}{suffix}"
        path.write_bytes(render(each, suffix, 1100 if name != "fslr" else 800, 420))
        say(str(path))
