"""`flerm check`: says before a training which tensors of a model would match a family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flerm_client.cli.common import (
    Depth,
    Json,
    Optimizer,
    Policy,
    Registry,
    Tag,
    client,
    print_json,
    say,
)
from flerm_core.errors import InvalidInput, NotFound
from flerm_core.records.key_value_pairs import key_value_pairs

if TYPE_CHECKING:
    from flerm_core.matching.targets import Targets
    from flerm_core.records.recording import RecordingSpec
    from flerm_core.trajectory import Trajectory

_BatchSize = Annotated[
    int | None, typer.Option(help="examples of the model's steps; default: the base's", min=1)
]
_TotalSteps = Annotated[
    int | None,
    typer.Option(help="with --batch-size: the model's steps; default: as the base", min=1),
]


def check(
    family: Annotated[str, typer.Argument(help="name of the family to match")],
    model: Annotated[
        Path,
        typer.Argument(
            help="a spool file, an .npz trajectory, or a text file with one parameter name per line"
        ),
    ],
    lr: Annotated[float, typer.Option(help="base learning rate")],
    step: Annotated[
        int | None, typer.Option(help="step to compare at; default: the first measured one")
    ] = None,
    policy: Policy = "interpolate",
    depth: Depth = "",
    optimizer: Optimizer = "",
    tag: Tag = None,
    batch_size: _BatchSize = None,
    total_steps: _TotalSteps = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Compare a model with a family: which parameters would be unmatched, clamped or noisy.

    Also reports where estimator or optimiser differ from the family's. Exit code 3: a parameter has
    no counterpart in the family. Exit code 5: estimator or optimiser differ.

    Example: flerm check mlp wide.npz --lr 4e-3 --registry grpc://127.0.0.1:50051
    """
    from flerm_client.training.match_report import MatchReport
    from flerm_core.matching.batch_change import BatchChange
    from flerm_core.matching.match_cautions import RunFacts
    from flerm_core.records.batch_size import batch_size_of

    names, measured, spec, own_steps = _model(model)
    with client(registry) as connected:
        found = connected.targets(
            family,
            lr,
            names=names,
            step=step,
            policy=policy,
            depth=depth,
            optimizer=optimizer,
            tags=key_value_pairs("--tag", tag),
        )
        times, change = 1.0, BatchChange.asked(found, batch_size, total_steps)
        facts = RunFacts(
            batch_size=None if spec is None else batch_size_of(spec),
            steps=own_steps,
            follows=change is not None,
            config={} if spec is None else spec.config,
            tags=key_value_pairs("--tag", tag),
        )
        cautions = connected.match_cautions(found, facts)
    if change is not None:
        found, times = replace(found, remarks=(*found.remarks, change.sentence)), change.rate
    differing = () if spec is None else _mismatches(found, spec)
    report = MatchReport.of(
        found,
        None if measured is None else measured.at(step),
        step=step,
        mismatches=differing,
        cautions=cautions,
        times=times,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        say(report.text())
    if differing:
        raise typer.Exit(5)


def _mismatches(targets: Targets, spec: RecordingSpec) -> tuple[str, ...]:
    from flerm_client.training.match_report import mismatches
    from flerm_core.matching.rate_ratios import rate_words

    own = spec.optimizer_config if spec.optimizer else None
    differing = mismatches(
        targets,
        optimizer=spec.optimizer,
        optimizer_config=own,
        estimator=spec.estimator.comparability,
    )
    if own is None or not targets.optimizer:
        return differing
    return differing + rate_words(targets.names, own, targets.optimizer_config, spec.lr)


def _model(
    path: Path,
) -> tuple[list[str], Trajectory | None, RecordingSpec | None, int | None]:
    """The parameter names in a file, and where the file has them its trajectory, its specification
    and the number of steps that its run made.

    Raises `NotFound` where there is no such file, and `InvalidInput` for one without names.
    """
    from flerm_core.parameter_names import is_depth_group
    from flerm_core.trajectory import Trajectory

    if not path.exists():
        raise NotFound(f"there is no file {path}")
    if path.suffix == ".spool":
        from flerm_client.spool.reader import read

        content = read(path)
        trajectory = Trajectory.from_measurements(content.spec.parameters, content.rows)
        spec: RecordingSpec | None = content.spec
        steps = content.ending.final_step if content.ending is not None else None
    elif path.suffix == ".npz":
        trajectory, spec, steps = Trajectory.load(path), None, None
    else:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{path} is no text: allowed is one name on each line") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if not names:
            raise InvalidInput(f"{path} names no parameter; allowed is one name on each line")
        return names, None, None, None
    names = [name for name in trajectory.names if not is_depth_group(name)]
    return names, trajectory if len(trajectory) else None, spec, steps
