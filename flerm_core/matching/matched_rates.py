"""The learning rates that a matched run trained at, tensor by tensor, and the targets behind them.

A recording of a matched run holds its FSLRs and, beside each row, the multipliers in force. The
targets are not stored. They are computed anew from the base recordings that the run names as its
sources, and are used only where their digest equals the digest that the run recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import FlermError, NotFound
from flerm_core.log_interpolation import interpolate_rows
from flerm_core.matching.batch_change import BATCH_FACTOR
from flerm_core.matching.depth_rules import DEFAULT_DEPTH, DEPTH_RULES
from flerm_core.matching.match import ROUNDING, noise_floor
from flerm_core.matching.targets import Targets, build_targets
from flerm_core.matching.tensor_rate import TensorRate
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import ParameterList, Recording
from flerm_core.run_clock import CLOCKS
from flerm_core.trajectory import Trajectory

MULTIPLIER = "multiplier"
"""The auxiliary vector that holds the multipliers in force."""

NOTES = {
    "": "matched: multiplier = target / measured",
    "clamped": "clamped: the multiplier is held at the end of its range, so the target is missed",
    "noise": "left alone: measured FSLR or target is below 1e-4 of the median, which is noise",
    "unmeasured": "left alone: no update of this tensor was measured when the run was matched",
    "no target": "left alone: the base has no FSLR of this tensor at that step",
}
"""The note on a tensor: a short word, and the sentence that explains the word."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchedRates:
    """The learning rates that a matched run trained at, and the targets behind them.

    parameters: the run's L tensors, without depth groups.
    steps: the T measured steps that have multipliers, int64 [T].
    schedule: η(t) of the user's schedule, float64 [T].
    fslr, multipliers, targets: float64 [T, L], NaN: not known.
    notes: a key of `NOTES` for each tensor [L], as of the tensor's last match.
    matched: the rows at which multipliers were set, bool [T].
    batch_factor: the factor in every multiplier by which the run follows its own batch size and
        length (`BatchChange.rate`); 1 where it does not.
    depth, clock: the depth rule and the clock by which the targets were found in the base
        recordings. Both are empty where these recordings no longer give the run's targets. Targets
        are then what the run reached when it was matched: target = multiplier · measured.
    sources: the base recordings that the registry still has.
    missing: the ids of the base recordings that it no longer has.
    """

    parameters: ParameterList
    steps: NDArray[np.int64]
    schedule: Array
    fslr: Array
    multipliers: Array
    targets: Array
    matched: NDArray[np.bool_]
    notes: tuple[str, ...]
    batch_factor: float
    depth: str
    clock: str
    sources: tuple[Recording, ...]
    missing: tuple[str, ...]

    @property
    def rates(self) -> Array:
        """η(t) · m by step and tensor, [T, L]."""
        found: Array = self.schedule[:, None] * self.multipliers
        return found

    @property
    def ratios(self) -> Array:
        """multiplier / `batch_factor` · FSLR / target by step and tensor, [T, L]."""
        matched = _without(self.batch_factor, self.multipliers)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = matched * self.fslr / self.targets
        found[~np.isfinite(found)] = np.nan
        return found

    @property
    def batch_words(self) -> str:
        """What `batch_factor` is, in a sentence; empty where there is none."""
        if self.batch_factor == 1.0:
            return ""
        return (
            f"Every multiplier has the factor {self.batch_factor:.4g}, by which the run follows "
            "its own batch size and length; whether a target is reached is said without the factor."
        )

    @property
    def ratio_trajectory(self) -> Trajectory:
        """`ratios` as a trajectory, for figures. The values have no unit."""
        listed = self.parameters
        return Trajectory(listed.names, listed.shapes, self.steps, self.ratios, bands=listed.bands)

    @property
    def match_step(self) -> int:
        """The last step at which the run was matched."""
        return int(self.steps[np.flatnonzero(self.matched)[-1]])

    def at(self, step: int | None = None) -> list[TensorRate]:
        """The rates of every tensor at one measured step.

        step: the step; None for `match_step`.

        Raises `NotFound` for a step that is not in `steps`.
        """
        step = self.match_step if step is None else step
        row = int(np.searchsorted(self.steps, step))
        if row == len(self.steps) or self.steps[row] != step:
            near = int(self.steps[min(row, len(self.steps) - 1)])
            raise NotFound(f"step: {step} was not measured; {near} was, for example")
        columns = (self.targets, self.fslr, self.multipliers, self.rates, self.ratios)
        values = np.stack([each[row] for each in columns], axis=1).tolist()
        listed = self.parameters
        return [
            TensorRate(
                name=name, band=band, shape=shape, target=numbers[0], fslr=numbers[1],
                multiplier=numbers[2], rate=numbers[3], ratio=numbers[4], note=note,
            )
            for name, band, shape, numbers, note in zip(
                listed.names, listed.bands, listed.shapes, values, self.notes, strict=True
            )
        ]  # fmt: skip


def effective_fslrs(run: Trajectory, auxiliary: AuxiliaryColumns, lr: float) -> Trajectory:
    """How far each tensor's updates moved the outputs: learning rate · multiplier · FSLR.

    Depth groups, and all tensors of a run that was not matched, count with multiplier 1.

    run: the run's FSLRs at learning rate 1, T rows.
    auxiliary: of the same rows.
    lr: the learning rate of rows that logged none.
    """
    rates = np.where(np.isnan(run.learning_rates), lr, run.learning_rates)
    ones = np.ones(run.values.shape, np.float32)
    factors = auxiliary.vectors.get(MULTIPLIER, ones)
    values = run.values * np.where(np.isnan(factors), 1.0, factors) * rates[:, None]
    return Trajectory(run.names, run.shapes, run.steps, values, bands=run.bands)


def matched_rates(
    recording: Recording,
    run: Trajectory,
    auxiliary: AuxiliaryColumns,
    *,
    find: Callable[[str], Recording],
    load: Callable[[str], Trajectory],
    blocks: Sequence[str] = (),
) -> MatchedRates:
    """The rates of a matched run.

    recording: the matched run's recording.
    run, auxiliary: the recording's trajectory, and the auxiliary values of its rows.
    find: gives the recording with an id, and raises `NotFound` for a deleted one.
    load: gives the trajectory of the recording with an id.
    blocks: the family's block axes.

    Raises `NotFound` for a recording without multipliers, which was not matched.
    """
    multipliers = auxiliary.vectors.get(MULTIPLIER, np.full(run.values.shape, np.nan, np.float32))
    rows = np.flatnonzero(np.isfinite(multipliers).any(axis=1))
    if not len(rows):
        raise NotFound(
            f"recording {recording.spec.id} has no multipliers: the run was not matched "
            f"(variant {recording.spec.variant!r}); choose a recording of a matched run"
        )
    columns = np.array([at for at, name in enumerate(run.names) if not is_depth_group(name)])
    batch_factor = _batch_factor(auxiliary)
    given = multipliers[np.ix_(rows, columns)].astype(np.float64)
    factors = _without(batch_factor, given)
    fslr = run.values[np.ix_(rows, columns)].astype(np.float64)
    changes = np.diff(factors, axis=0, prepend=1.0) != 0  # all multipliers were 1 before the run
    matched = changes.any(axis=1)
    matched[0] |= not matched.any()
    parameters = run.parameters.select(columns.tolist())
    steps, tokens = run.steps[rows], run.tokens[rows]
    # What a tensor reached where its multiplier changed, or at the first match if it stayed 1.
    first = np.arange(len(rows)) == np.flatnonzero(matched)[0]
    held = _last(np.where(changes | first[:, None], factors * fslr, np.nan))
    targets, depth, clock = held, "", ""
    sources, missing = _find_all(recording.spec.targets_sources, find)
    found = None if missing else _targets_of(recording, parameters, sources, load, blocks)
    if found is not None:
        for name in CLOCKS:
            table = _on_clock(found, name, steps, tokens, recording.final_step, parameters.names)
            if table is not None and _reached(table, factors * fslr, changes):
                targets, depth, clock = table, found.depth, name
                break
    return MatchedRates(
        parameters=parameters,
        steps=steps,
        schedule=run.learning_rates[rows],
        fslr=fslr,
        multipliers=given,
        targets=targets,
        matched=matched,
        notes=_notes(targets, fslr, factors, changes, matched),
        batch_factor=batch_factor,
        depth=depth,
        clock=clock,
        sources=tuple(sources),
        missing=tuple(missing),
    )


def _batch_factor(auxiliary: AuxiliaryColumns) -> float:
    said = auxiliary.scalars.get(BATCH_FACTOR, np.ones(1))
    known = said[np.isfinite(said)]
    return float(known[-1]) if len(known) else 1.0


def _without(batch_factor: float, multipliers: Array) -> Array:
    """The multipliers that reach the targets; those of tensors that were not matched are 1."""
    # Rows hold multipliers in float32, in which alone a tensor that was not matched has the factor.
    found: Array = multipliers / float(np.float32(batch_factor))
    return found


def _find_all(
    ids: Sequence[str], find: Callable[[str], Recording]
) -> tuple[list[Recording], list[str]]:
    """The recordings with `ids`, and the ids of those that are not there."""
    found, missing = [], []
    for each in ids:
        try:
            found.append(find(each))
        except NotFound:
            missing.append(each)
    return found, missing


def _targets_of(
    recording: Recording,
    parameters: ParameterList,
    sources: Sequence[Recording],
    load: Callable[[str], Trajectory],
    blocks: Sequence[str],
) -> Targets | None:
    """The targets that the run used: those with the digest that it recorded.

    Every depth rule is tried. None where no rule gives targets with this digest.
    """
    spec = recording.spec
    groups: dict[float, tuple[Recording, ...]] = {}
    for each in sorted(sources, key=lambda each: (each.spec.lr, each.spec.seed)):
        groups[each.spec.lr] = (*groups.get(each.spec.lr, ()), each)
    if not groups:
        return None
    loaded = {each.spec.id: load(each.spec.id) for each in sources}
    query = TargetQuery(
        family=spec.family, lr=spec.lr, names=parameters.names, shapes=parameters.shapes
    )
    for rule in (DEFAULT_DEPTH, *(each for each in DEPTH_RULES if each != DEFAULT_DEPTH)):
        try:
            found = build_targets(
                replace(query, depth=rule), groups, lambda each: loaded[each.spec.id], blocks=blocks
            )
        except FlermError:  # the run did not use a rule that fails for these models
            continue
        if found.digest == spec.targets_digest:
            return found
    return None


def _on_clock(
    targets: Targets,
    clock: str,
    steps: NDArray[np.int64],
    tokens: NDArray[np.int64],
    final_step: int | None,
    names: Sequence[str],
) -> Array | None:
    """The targets [T, L] that a run has at its `steps`, if it finds its place by `clock`.

    None where this clock cannot be read, because tokens or the run's end are not known.

    targets: the targets over the base's run.
    clock: "step", "tokens" or "fraction".
    steps, tokens: the matched run's measured steps and tokens, [T].
    final_step: the step at which the matched run ended, where it has.
    names: the tensors, in the order of the columns.
    """
    readings: Mapping[str, Sequence[float | Fraction] | None] = {
        "step": steps.tolist(),
        "tokens": tokens.tolist() if (tokens >= 0).all() else None,
        "fraction": [Fraction(step, final_step) for step in steps.tolist()]
        if final_step and final_step >= steps[-1]
        else None,
    }
    asked = readings[clock]
    if asked is None:
        return None
    try:
        found = [targets.step_at(**{clock: each}) for each in asked]
    except FlermError:  # the base logged no tokens
        return None
    table = interpolate_rows(targets.steps, targets.table, np.array(found, np.float64))
    # Before the base's first measurement of a tensor, that first value is used, as in training.
    first = _last(targets.table.astype(np.float64))[0]
    table = np.where(np.isnan(table), first, table)
    return table[:, [targets.names.index(name) for name in names]]


def _reached(targets: Array, reached: Array, changes: NDArray[np.bool_]) -> bool:
    """Whether most tensors had their targets, up to rounding, where their multipliers were set."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(np.log2(reached / targets))[changes]
    apart = apart[np.isfinite(apart)]
    return not len(apart) or float(np.median(apart)) <= ROUNDING


def _last(values: Array) -> Array:
    """`values` with each NaN replaced by the column's last known value.

    At the start of a column, before any known value, it is replaced by the first known one.
    """
    steps = np.arange(len(values), dtype=np.int64)
    known = ~np.isnan(values)
    at = np.maximum.accumulate(np.where(known, steps[:, None], -1), axis=0)
    first = known.argmax(axis=0)
    return np.take_along_axis(values, np.where(at < 0, first[None, :], at), axis=0)


def _notes(
    targets: Array,
    fslr: Array,
    factors: Array,
    changes: NDArray[np.bool_],
    matched: NDArray[np.bool_],
) -> tuple[str, ...]:
    last = len(changes) - 1 - changes[::-1].argmax(axis=0)
    row = np.where(changes.any(axis=0), last, int(np.flatnonzero(matched)[0]))
    floors = {
        at: (noise_floor(fslr[at].tolist()), noise_floor(targets[at].tolist()))
        for at in set(row.tolist())
    }
    notes = []
    for column, at in enumerate(row.tolist()):
        measured, target = float(fslr[at, column]), float(targets[at, column])
        floor, target_floor = floors[at]
        if not measured > 0:
            notes.append("unmeasured")
        elif measured < floor:
            notes.append("noise")
        elif not target > 0:
            notes.append("no target")
        elif target < target_floor:
            notes.append("noise")
        else:
            apart = abs(math.log2(factors[at, column] * measured / target))
            notes.append("clamped" if apart > ROUNDING else "")
    return tuple(notes)
