"""`flerm sweep`: loss against learning rate at many scales, plain, matched and by other rules."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flerm_client.cli.common import Json, Registry, client, complain, print_json, print_table, say
from flerm_core.errors import InvalidInput
from flerm_experiments.cli.progress import end_with_children, print_progress, trial_name

if TYPE_CHECKING:
    from flerm_experiments.sweep.spec import Sweep
    from flerm_experiments.sweep.trials import Trial


Preset = Annotated[
    str, typer.Argument(help="A preset (see --list), or a TOML file.", show_default=False)
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Train each cell with this many seeds; default: the sweep's own.", min=1),
]
Jobs = Annotated[
    int | None, typer.Option(help="Trainings at a time; default: one per core.", min=1)
]
On = Annotated[
    str, typer.Option(help="local, ray (a Ray cluster) or slurm (prints a script for sbatch).")
]
CellNumber = Annotated[
    str | None, typer.Option(help="Only a part: base, or a cell's number from 0.")
]
TableOnly = Annotated[
    bool, typer.Option("--table", help="Train nothing; print what the registry holds.")
]
Markdown = Annotated[
    bool,
    typer.Option("--markdown", help="The same as --table, as a section of a Markdown document."),
]
FigureFolder = Annotated[
    Path | None, typer.Option(help="Train nothing; draw what the registry holds into this folder.")
]
Ending = Annotated[
    str, typer.Option(help="File type of the figures: png, svg, html or json (plotly's own).")
]
Listing = Annotated[bool, typer.Option("--list", help="Name the presets.")]


def sweep(
    what: Preset = "",
    seeds: Seeds = None,
    jobs: Jobs = None,
    on: On = "local",
    cell: CellNumber = None,
    table: TableOnly = False,
    markdown: Markdown = False,
    figure: FigureFolder = None,
    ending: Ending = "png",
    listing: Listing = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Train a grid of learning rates, scales and seeds, plain and matched. Trainings that the
    registry holds are not run again.

    Example: flerm sweep decoder-width --registry file:///tmp/sweeps. On SLURM:
    flerm sweep decoder-width --on slurm --cell base -r ADDRESS | sbatch, and once that job is done
    flerm sweep decoder-width --on slurm -r ADDRESS | sbatch
    """
    # Late, because `flerm --help` must not wait for torch.
    from flerm_experiments.sweep import spec

    if listing:
        for name in spec.presets():
            say(f"{name}: {spec.load(name).title}")
        return
    chosen = spec.load(what)
    if chosen.command is not None and chosen.command.search is not None:
        raise InvalidInput(
            f"search: {what} has the table [search], which only flerm tune can run; flerm sweep "
            "compares models at fixed values: put the values that were found into [base] and "
            "[target], and remove [search]"
        )
    if seeds is not None:
        chosen = replace(chosen, seeds=seeds)
    if on == "slurm":
        from flerm_experiments.sweep.slurm_executor import job_script

        say(
            job_script(
                chosen, what, registry or os.environ.get("FLERM_REGISTRY"), cell=cell, jobs=jobs
            )
        )
        return
    if cell is not None:
        chosen = chosen.part(cell)
    failures = {} if table or markdown or figure is not None else _train(chosen, registry, on, jobs)
    if figure is not None:
        _draw_figures(chosen, registry, figure, ending)
    else:
        _print_results(chosen, registry, markdown=markdown, as_json=as_json)
    if failures:
        for trial, why in failures.items():
            complain(f"failed: {trial_name(chosen, trial)}: {why}")
        complain(
            f"{len(failures)} trainings failed; the same command tries them again and nothing else"
        )
        raise typer.Exit(1)


def _train(chosen: Sweep, registry: str | None, on: str, jobs: int | None) -> dict[Trial, str]:
    """Runs the sweep and prints its progress on standard error. Returns why trainings failed."""
    from flerm_experiments.sweep.executors import executor_named
    from flerm_experiments.sweep.runner import run_sweep

    end_with_children()
    return run_sweep(
        chosen,
        registry,
        executor_named(on, jobs, chosen),
        on_progress=partial(print_progress, chosen),
    ).failures


def _print_results(chosen: Sweep, registry: str | None, *, markdown: bool, as_json: bool) -> None:
    from flerm_experiments.sweep import registry_state, results

    rows = results.curve_rows(chosen, registry_state.finished_trials(chosen, registry))
    if as_json:
        print_json(rows)
    elif markdown:
        say(results.markdown(chosen, rows))
    else:
        print_table(results.HEADINGS, [row.texts for row in rows], title=chosen.title)


def _draw_figures(chosen: Sweep, registry: str | None, folder: Path, ending: str) -> None:
    from flerm_client.cli.plot import FORMATS, render
    from flerm_experiments.sweep import registry_state, results
    from flerm_experiments.sweep.figures import picture_height, sweep_figures

    suffix = f".{ending}"
    if suffix not in FORMATS:
        raise InvalidInput(
            f"--ending: {ending!r} is unknown; allowed are "
            f"{', '.join(each[1:] for each in FORMATS)}"
        )
    finished = registry_state.finished_trials(chosen, registry)
    rows = results.curve_rows(chosen, finished)
    folder.mkdir(parents=True, exist_ok=True)
    with client(registry) as connected:
        figures = sweep_figures(chosen, finished, rows, connected.trajectory)
    for name, each in figures.items():
        path = folder / f"{chosen.name}-{name}{suffix}"
        path.write_bytes(
            render(each, suffix, 1100 if name != "fslr" else 800, picture_height(each))
        )
        say(str(path))
