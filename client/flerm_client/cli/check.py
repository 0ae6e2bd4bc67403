"""`flerm check`: would a model match a family? Asked before money is spent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flerm_client.cli.common import Json, Registry, Tag, client, print_json, print_table, say, tags_of
from flerm_core.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from flerm_core.recording import RecordingSpec
    from flerm_core.trajectory import Trajectory


def check(
    family: Annotated[str, typer.Argument(help="the family to match")],
    model: Annotated[
        Path, typer.Argument(help="a spool file, an .npz trajectory, or a text file with a parameter name on each line")
    ],
    lr: Annotated[float, typer.Option(help="base learning rate")],
    step: Annotated[int | None, typer.Option(help="compare at this step; default: the first measured")] = None,
    policy: Annotated[str, typer.Option(help="interpolate, nearest or exact")] = "interpolate",
    depth: Annotated[str, typer.Option(help="rule for another number of blocks")] = "",
    optimizer: Annotated[str, typer.Option(help="class name, where several were used")] = "",
    tag: Tag = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """A dry comparison: what would be unmatched, clamped, noisy, measured by another estimator or with another optimiser.

    Ends with exit code 3 when a parameter has no counterpart, 5 when estimator or optimiser differ.

    Example: flerm check mlp wide.npz --lr 4e-3 --registry grpc://127.0.0.1:50051
    """
    names, measured, spec = _model(model)
    with client(registry) as connected:
        found = connected.targets(
            family, lr, names=names, step=step, policy=policy, depth=depth, optimizer=optimizer, tags=tags_of(tag)
        )
    mismatches = []
    if spec is not None and spec.estimator.kind != found.estimator.kind:
        mismatches.append(f"estimator: measured by {spec.estimator.kind}, the targets by {found.estimator.kind}")
    if spec is not None and spec.optimizer and spec.optimizer != found.optimizer:
        mismatches.append(f"optimizer: the model's is {spec.optimizer}, the targets' {found.optimizer}")
    report: dict[str, Any] = {
        "family": family,
        "lr": lr,
        "sources": found.sources,
        "seeds": found.seeds,
        "digest": found.digest,
        "targets": dict(found),
        "spread": dict(zip(found.names, found.spread[0].tolist(), strict=True)),
        "mismatches": mismatches,
    }
    if measured is not None:
        from flerm_core.matching import multipliers

        moment = measured.at(step)
        made = multipliers(dict(found), moment)
        report |= {
            "measured": moment,
            "multipliers": made.values,
            "unmeasured": made.unmeasured,
            "noisy": made.noisy,
            "clamped": made.clamped,
        }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if mismatches:
        raise typer.Exit(5)


def _print(report: dict[str, Any]) -> None:
    say(f"{len(report['targets'])} tensors match {report['family']} at lr {report['lr']:g} ({report['seeds']} seeds)")
    for mismatch in report["mismatches"]:
        say(f"mismatch: {mismatch}")
    for kind in ("unmeasured", "noisy", "clamped"):
        if report.get(kind):
            say(f"{kind}: {', '.join(report[kind])}")
    wide = [name for name, spread in report["spread"].items() if not math.isnan(spread) and spread > 0.5]
    if wide:
        say(f"seeds disagree (spread of ln FSLR above 0.5): {', '.join(wide)}")
    measured, factors = report.get("measured", {}), report.get("multipliers", {})
    names = factors or report["targets"]
    rows = [
        (name, report["targets"].get(name), measured.get(name), factors.get(name), report["spread"].get(name, math.nan))
        for name in names
    ]
    print_table(("tensor", "target FSLR", "measured", "multiplier", "spread (ln)"), rows)


def _model(path: Path) -> tuple[list[str], Trajectory | None, RecordingSpec | None]:
    """Names, what was measured, and by which recording; the last two where the file knows them."""
    from flerm_core.naming import is_role
    from flerm_core.trajectory import Trajectory

    if not path.exists():
        raise NotFound(f"there is no file {path}")
    if path.suffix == ".spool":
        from flerm_client.spool.reader import read

        content = read(path)
        trajectory = Trajectory.from_measurements(content.spec.parameters, content.rows)
        spec: RecordingSpec | None = content.spec
    elif path.suffix == ".npz":
        trajectory, spec = Trajectory.load(path), None
    else:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        if not names:
            raise InvalidInput(f"{path} names no parameter; allowed is one name on each line")
        return names, None, None
    names = [name for name in trajectory.names if not is_role(name)]
    return names, trajectory if len(trajectory) else None, spec
