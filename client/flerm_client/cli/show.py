"""`flerm show`: one recording, from a registry or from a spool file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flerm_client.cli.common import (
    Json,
    Registry,
    client,
    local_time,
    number,
    print_json,
    print_table,
    say,
    transfer,
)
from flerm_client.cli.recordings import as_plain
from flerm_core.errors import NotFound
from flerm_core.matching.matched_rates import MatchedRates
from flerm_core.records.recording import Recording
from flerm_core.trajectory import Trajectory


def show(
    recording: Annotated[str, typer.Argument(help="id of a recording, or path of a spool file")],
    pattern: Annotated[
        str, typer.Option(help="only parameters that match this shell-style pattern")
    ] = "",
    step: Annotated[
        int | None,
        typer.Option(help="of a matched run: the step whose learning rates are shown"),
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show one recording: the FSLRs of its first and last measurement, and of a matched run the
    target, the multiplier and the learning rate of every tensor.

    Example: flerm show 6a1f0c1e-8a57-4b6e-9f0e-0c5d3c1c9a11 --pattern '*.weight'
    """
    path = Path(recording)
    found, trajectory, notes, rates = (
        (*_from_spool(path, pattern), None)
        if path.suffix == ".spool"
        else _from_registry(recording, registry, pattern)
    )
    if as_json:
        series = [{"step": row.step, "loss": row.loss, "fslr": row.values} for row in trajectory]
        content = {"names": trajectory.names, "trajectory": series, "notes": notes}
        at = [] if rates is None else [asdict(each) for each in rates.at(step)]
        print_json({**as_plain(found), **content, "rates": at})
        return
    _print_summary(found, notes)
    if rates is not None:
        _print_rates(rates, step, set(trajectory.names))
    elif len(trajectory):
        _print_parameters(trajectory)


def _print_summary(found: Recording, notes: list[str]) -> None:
    spec = found.spec
    say(
        f"recording {spec.id}: {spec.family}, lr {number(spec.lr)}, seed {spec.seed}, "
        f"{spec.role}/{spec.variant}, {found.status}"
    )
    say(
        f"{spec.optimizer or 'optimiser unknown'}, estimator {spec.estimator.comparability}, "
        f"world size {spec.world_size}"
    )
    say(
        f"{found.rows} measurements, steps {found.first_step} to {found.last_step}, "
        f"final loss {number(found.final_loss)}"
    )
    by = f" by {found.created_by}" if found.created_by else ""
    say(f"begun {local_time(found.created_at)}{by}, ended {local_time(found.finished_at)}")
    for note in (*found.remarks, *notes):
        say(note)


def _print_rates(rates: MatchedRates, step: int | None, names: set[str]) -> None:
    """Prints a row for each tensor among `names`, at `step` or else at the last match.

    The column "reached" is multiplier · FSLR / target, without the factor of a batch change in the
    multiplier: 1 where the update moves the outputs as far as the target says.
    """
    shown = rates.match_step if step is None else step
    rule = (
        f"depth rule {rates.depth}, by {rates.clock}" if rates.depth else "as reached when matched"
    )
    seeds = ", ".join(f"{each.spec.id[:8]} (seed {each.spec.seed})" for each in rates.sources)
    say(f"last matched at step {rates.match_step}; targets: {rule}; from {seeds or 'no recording'}")
    if rates.batch_words:
        say(rates.batch_words)
    if rates.missing:
        say(f"{len(rates.missing)} base recordings are not in the registry any more")
    rows = [
        (each.name, each.rate, each.multiplier, each.target, each.fslr, each.ratio, each.note)
        for each in rates.at(shown)
        if each.name in names
    ]
    columns = ("tensor", f"rate at step {shown}", "multiplier", "target", "FSLR", "reached", "note")
    print_table(columns, rows, empty="no parameters")


def _print_parameters(trajectory: Trajectory) -> None:
    first, last = trajectory.values[0], trajectory.values[-1]
    rows = [
        (name, band, "×".join(map(str, shape)) or "–", float(first[at]), float(last[at]))
        for at, (name, band, shape) in enumerate(
            zip(trajectory.names, trajectory.bands, trajectory.shapes, strict=True)
        )
    ]
    print_table(
        (
            "parameter",
            "band",
            "shape",
            f"FSLR at step {trajectory.steps[0]}",
            f"at step {trajectory.steps[-1]}",
        ),
        rows,
        empty="no parameters",
    )


def _from_registry(
    recording_id: str, registry: str | None, pattern: str
) -> tuple[Recording, Trajectory, list[str], MatchedRates | None]:
    with client(registry) as connected, transfer(f"recording {recording_id}") as bar:
        found = connected.recording(recording_id)
        trajectory = connected.trajectory(recording_id, pattern=pattern, progress=bar)
        matched = found.spec.variant != "plain" or found.spec.targets_sources
        rates = None
        if matched and len(trajectory):
            with suppress(NotFound):  # a run by another rule, such as µP, has no targets
                rates = connected.matched_rates(recording_id)
        return found, trajectory, [], rates


def _from_spool(path: Path, pattern: str) -> tuple[Recording, Trajectory, list[str]]:
    from flerm_client.registry.stored_recording import StoredRecording
    from flerm_client.spool.reader import read

    if not path.exists():
        raise NotFound(f"there is no spool file {path}")
    content = read(path)
    stored = StoredRecording([content])
    notes = [f"written by {content.origin.owner}, for {content.origin.registry or 'no registry'}"]
    notes += [
        f"gap: {gap.lost} measurements from step {gap.first_step} to {gap.last_step} lost "
        f"({gap.reason})"
        for gap in content.gaps
    ]
    notes += [f"damage: {damage}" for damage in content.damage]
    if content.tail and content.status != "running":
        notes.append(f"{content.tail} bytes of an unfinished write at the end")
    trajectory = stored.trajectory()
    return stored.recording(), trajectory.select(pattern) if pattern else trajectory, notes
