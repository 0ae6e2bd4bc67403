"""`flerm tune`: tunes the small model of a sweep file, and trains the big one matched to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flerm_client.cli.common import Json, Registry, print_json, say
from flerm_experiments.cli.progress import end_with_children, print_progress
from flerm_experiments.sweep.job_outcome import duration

SweepFile = Annotated[
    str, typer.Argument(help="A TOML file with a command; flerm init writes one.")
]
Jobs = Annotated[
    int | None, typer.Option(help="Trainings at a time; default: as many as fit.", min=1)
]
On = Annotated[str, typer.Option(help="local or ray (a Ray cluster).")]
ReportFolder = Annotated[
    Path | None,
    typer.Option(help="For report.md and report.html; default: the folder of the runs."),
]


def tune(
    what: SweepFile,
    jobs: Jobs = None,
    on: On = "local",
    report: ReportFolder = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Find the best learning rate of the base, show what matching the target would do, train the
    target matched, and write a report. Runs that the registry holds are not run again.

    Example: flerm tune train.toml --registry file:///tmp/registry
    """
    # Late, because `flerm --help` must not wait for torch.
    from flerm_experiments.sweep import executors, spec
    from flerm_experiments.sweep import report as report_text
    from flerm_experiments.sweep import tune as tuning

    sweep = spec.load(what)
    command = tuning.command_of(sweep)
    end_with_children()
    new_executor = partial(executors.executor_named, on, jobs, sweep)
    base = tuning.sweep_base(
        sweep, registry, new_executor, partial(print_progress, sweep), partial(typer.echo, err=True)
    )
    if not as_json:
        say(report_text.answer_sentence(base))
        say(f"{base.row.runs} trainings of the base took {duration(base.row.seconds)} in all.")
    run = tuning.train_target(
        base,
        registry,
        new_executor(),
        (lambda _: None) if as_json else (lambda text: say(f"\n{text}\n")),
    )
    folder = report or command.folder
    folder.mkdir(parents=True, exist_ok=True)
    reports = {"report.md": report_text.markdown(run), "report.html": report_text.page(run)}
    for name, text in reports.items():
        (folder / name).write_text(text)
    if as_json:
        print_json(
            {
                "lr": base.lr,
                "values": {} if base.searched is None else base.searched.best.by_name,
                "optimum": base.row.optimum,
                "interval": base.interval,
                "base_runs": base.row.runs,
                "base_seconds": base.row.seconds,
                "recording": run.big.recording,
                "loss": run.big.loss,
                "seconds": run.big.seconds,
                "multipliers": run.multipliers,
                "reports": [str(folder / name) for name in reports],
            }
        )
        return
    say(f"big model: loss {run.big.loss:.4f} in {duration(run.big.seconds)}")
    for name in reports:
        say(str(folder / name))
