"""Targets: the FSLRs that a matched run aims for, computed from base recordings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flerm_core._arrays import thin
from flerm_core.errors import Ambiguous, NotFound
from flerm_core.log_interpolation import blend, geometric_mean, interpolate_rows, log_spread
from flerm_core.matching.base_selection import Sources, choose_sources
from flerm_core.matching.dimensions import refuse_other_dimensions, shapes_by_name
from flerm_core.matching.match import DEFAULT_DEPTH, thinned_columns
from flerm_core.matching.match_plan import MatchPlan
from flerm_core.matching.mixed_bases import mixture_words
from flerm_core.parameter_names import is_depth_group
from flerm_core.records.batch_size import common_batch_size
from flerm_core.records.packing import pack
from flerm_core.records.queries import TargetQuery
from flerm_core.records.recording import EstimatorSettings, Recording
from flerm_core.run_clock import Reading, step_at, tokens_at
from flerm_core.trajectory import Trajectory, difference

__all__ = ["TargetQuery", "Targets", "build_targets", "choose_sources", "targets_digest"]

Array = NDArray[np.float64]

PART_BYTES = 4 << 20


class _PlacesOfNames:
    """Gives `Targets` a slot for the column of each name. It is not a field of the dataclass."""

    __slots__ = ("_places",)

    _places: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Targets(_PlacesOfNames, Mapping[str, float]):
    """Target FSLRs over a run, and where they come from.

    As a mapping, this is the first row of `table`: the FSLR of each tensor, NaN where the base had
    not measured the tensor.

    family, lr, policy, depth: as in the query; `depth` names the rule that was used.
    names: the L tensors of the model that the query is about.
    steps: steps of the base runs, int64 [T].
    table: the targets, float32 [T, L], in output units per unit of learning rate.
    spread: the standard deviation of ln FSLR over seeds, float32 [T, L]; NaN for a single seed.
    tokens: the tokens that the base runs had seen by these steps, int64 [T]; -1: not known.
    optimizer, optimizer_config, estimator: those of the base runs.
    sources: the ids of the base recordings.
    source_learning_rates: the distinct learning rates of these recordings, ascending.
    seeds: how many recordings were averaged, at the learning rate with the fewest.
    digest: `targets_digest` of names, steps and table.
    final_step: the step at which the longest of the base runs ended. Where this is not known, the
        last measured step.
    final_tokens: the most tokens that a base run had seen by its end; None where this is not known
        for every base run.
    remarks: sentences on how targets were found where the base does not say all that they need
        (tensors tied in one of the two models alone; another depth, where the base has no coherence
        of its blocks), and on base recordings of different experiments.
    batch_size: the examples of one optimiser step of the base runs; None where they do not all say
        one number.
    """

    family: str
    lr: float
    policy: str
    depth: str
    names: tuple[str, ...]
    steps: NDArray[np.int64]
    table: NDArray[np.float32]
    spread: NDArray[np.float32]
    tokens: NDArray[np.int64]
    optimizer: str
    optimizer_config: Mapping[str, Any]
    estimator: EstimatorSettings
    sources: tuple[str, ...]
    source_learning_rates: tuple[float, ...]
    seeds: int
    digest: str
    final_step: int
    final_tokens: int | None = None
    remarks: tuple[str, ...] = ()
    batch_size: int | None = None

    def __getitem__(self, name: str) -> float:
        try:
            places = self._places
        except AttributeError:
            places = {each: at for at, each in enumerate(self.names)}
            object.__setattr__(self, "_places", places)
        return float(self.table[0, places[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        rates = ", ".join(f"{rate:g}" for rate in self.source_learning_rates)
        return (
            f"Targets({self.family!r}, lr={self.lr:g}, {len(self.names)} tensors, "
            f"{len(self.steps)} rows, "
            f"from lr {rates}, {self.seeds} seeds, {self.digest[:12]})"
        )

    def at(
        self,
        *,
        step: Reading | None = None,
        tokens: Reading | None = None,
        fraction: Reading | None = None,
    ) -> dict[str, float]:
        """The target of each tensor at one point of the base's run.

        step, tokens, fraction: the point, by one of the three clocks, as in `step_at`; without any,
            the first row.

        Between rows the logarithm of the FSLR is linear in the step. After the last row the last
        row's values hold. Raises as `step_at` does.
        """
        position = self.step_at(step=step, tokens=tokens, fraction=fraction)
        row = interpolate_rows(self.steps, self.table, np.array([position], np.float64))[0]
        return dict(zip(self.names, row.tolist(), strict=True))

    def step_at(
        self,
        *,
        step: Reading | None = None,
        tokens: Reading | None = None,
        fraction: Reading | None = None,
    ) -> float:
        """The base's step at a point that one of three clocks gives; without any, the first row's.

        step: the step itself.
        tokens: the tokens seen by then.
        fraction: the fraction of `final_step`, in [0, 1].

        Raises `InvalidInput` for more than one clock and for a value out of range, and `NotFound`
        for `tokens` where the base recordings logged none.
        """
        readings = {"step": step, "tokens": tokens, "fraction": fraction}
        recordings = f"the recordings {', '.join(self.sources)}"
        source = recordings if self.sources else "the run of this trajectory"
        return step_at(readings, self.steps, self.tokens, self.final_step, source)


def build_targets(
    query: TargetQuery,
    sources: Sources,
    load: Callable[[Recording], Trajectory],
    *,
    blocks: Sequence[str] = (),
    max_values: int = 0,
) -> Targets:
    """The targets that answer `query`.

    At each learning rate the seeds are averaged, as in `Trajectory.average`. The depth rule is
    applied to every row. Where there are two learning rates, targets at the query's rate are
    interpolated between them, linear in the logarithms of rate and FSLR.

    sources: what `choose_sources` chose.
    load: reads the trajectory of a recording.
    blocks: the family's block axes, used where the query names none.
    max_values: the most targets (steps times tensors) to give; 0: all. More are thinned to fewer
        steps, evenly spread, with the first and the last among them.

    Raises `Ambiguous` where the sources are not recordings of one model, `NotFound` for names that
    cannot be matched and for a source without rows, and `InvalidInput` for shapes whose number of
    dimensions is not the base's.
    """
    loaded = {rate: [load(each) for each in recordings] for rate, recordings in sources.items()}
    _refuse_other_models(sources, loaded)
    everything = [each for group in loaded.values() for each in group]
    recordings = [each for group in sources.values() for each in group]
    spec = recordings[0].spec
    steps = _steps(query, everything, max_values)
    plan = _plan(query, everything[0], query.blocks or tuple(blocks))
    names, table, spread = _tables(query, loaded, steps, plan)
    final_step, final_tokens = _ends(recordings, everything)
    return Targets(
        family=query.family,
        lr=query.lr,
        policy=query.policy,
        depth=query.depth or DEFAULT_DEPTH,
        names=names,
        steps=steps,
        table=table,
        spread=spread,
        tokens=_tokens(everything, steps),
        optimizer=spec.optimizer,
        optimizer_config=spec.optimizer_config,
        estimator=spec.estimator,
        sources=tuple(each.spec.id for each in recordings),
        source_learning_rates=tuple(sources),
        seeds=min(len(group) for group in sources.values()),
        digest=targets_digest(names, steps, table),
        final_step=final_step,
        final_tokens=final_tokens,
        remarks=(
            *plan.remarks(set(everything[0].names)),
            *filter(None, [mixture_words(recordings)]),
        ),
        batch_size=common_batch_size(recordings),
    )


def _steps(query: TargetQuery, runs: list[Trajectory], max_values: int) -> NDArray[np.int64]:
    """The steps to give targets for: `query`'s, or all of `runs`, thinned to `max_values`."""
    if query.step is not None:
        return np.array([query.step])
    steps = np.unique(np.concatenate([each.steps for each in runs]))
    if not max_values:
        return steps
    width = len(query.names) or len(runs[0].names)
    return steps[thin(len(steps), max(2, max_values // max(width, 1)))]


def _ends(recordings: list[Recording], runs: list[Trajectory]) -> tuple[int, int | None]:
    """`final_step` and `final_tokens` of targets from `recordings` with the trajectories `runs`."""
    steps = [int(each.steps[-1]) for each in runs] + [each.final_step or 0 for each in recordings]
    tokens = [each.tokens for each in recordings if each.tokens is not None]
    return max(steps), max(tokens) if len(tokens) == len(recordings) else None


def _plan(query: TargetQuery, base: Trajectory, blocks: Sequence[str]) -> MatchPlan:
    """Where the targets come from: the plan for the tensors of `query`, or for all of the base."""
    asked = query.names or tuple(name for name in base.names if not is_depth_group(name))
    bands = dict(zip(base.names, base.bands, strict=True))
    depth = query.depth or DEFAULT_DEPTH
    plan = MatchPlan.of(base.names, asked, bands=bands, blocks=blocks, depth=depth)
    own = shapes_by_name(query.names, query.shapes)
    refuse_other_dimensions(plan, own, shapes_by_name(base.names, base.shapes), query.family)
    return plan


def _tables(
    query: TargetQuery,
    loaded: Mapping[float, Sequence[Trajectory]],
    steps: NDArray[np.int64],
    plan: MatchPlan,
) -> tuple[tuple[str, ...], NDArray[np.float32], NDArray[np.float32]]:
    """Names [L], targets and their spread at `steps`, float32 [T, L] each."""
    everything = [each for group in loaded.values() for each in group]
    widest = max(len(everything[0].names), len(plan.name_of))

    def matched(trajectory: Trajectory, at: NDArray[np.int64]) -> dict[str, Array]:
        columns = dict(zip(trajectory.names, trajectory.resampled(at).T, strict=True))
        return plan.targets(columns, thinned_columns(trajectory))

    rates, means = tuple(loaded), [_mean(group) for group in loaded.values()]
    single = all(len(group) == 1 for group in loaded.values())
    names: tuple[str, ...] = ()
    table, spread = (np.empty((len(steps), 0), np.float32) for _ in range(2))
    for part in _parts(len(steps), len(everything) * widest):
        at = steps[part]
        columns = [matched(mean, at) for mean in means]
        if not names:
            names = tuple(columns[0])
            table, spread = (np.empty((len(steps), len(names)), np.float32) for _ in range(2))
            if single:  # one NaN, seen as an array: a spread that says nothing takes no memory
                spread = np.broadcast_to(np.float32(np.nan), table.shape)
        table[part] = _blend_rates(query, rates, [_table(each, at) for each in columns])
        if single:
            continue
        # The spread is taken over the targets that each seed alone would have given.
        spreads = [
            log_spread(np.stack([_table(matched(each, at), at) for each in group]))
            if len(group) > 1
            else np.full((len(at), len(names)), np.nan)
            for group in loaded.values()
        ]
        spread[part] = _blend_spreads(query, rates, spreads)
    return names, table, spread


def targets_digest(
    names: Sequence[str], steps: NDArray[np.int64], values: NDArray[np.float32]
) -> str:
    """SHA-256 (hex) of names, steps and values.

    Equal targets have equal digests on every machine; all NaNs count as equal.
    """
    content = hashlib.sha256(json.dumps(list(names)).encode())
    content.update(np.ascontiguousarray(steps, "<i8").tobytes())
    for part in _parts(len(values), len(names)):
        rows = values[part]
        content.update(pack(np.where(np.isnan(rows), np.float32(np.nan), rows)))
    return content.hexdigest()


def _refuse_other_models(sources: Sources, loaded: Mapping[float, Sequence[Trajectory]]) -> None:
    pairs = [
        (each, path)
        for rate in sources
        for each, path in zip(sources[rate], loaded[rate], strict=True)
    ]
    first, its = pairs[0]
    for each, trajectory in pairs:
        if not len(trajectory):
            raise NotFound(
                f"recording {each.spec.id} of {each.spec.family!r} is completed but has no "
                "measurements"
            )
        apart = difference(its, trajectory)
        if apart:
            raise Ambiguous(
                f"family: the base recordings {first.spec.id} and {each.spec.id} of "
                f"{each.spec.family!r} "
                f"are not of one model: {apart}; name one by tags, and record bigger models with "
                "role='scaled'"
            )


def _mean(group: Sequence[Trajectory]) -> Trajectory:
    """The mean of `Trajectory.average`, in bounded memory."""
    first = group[0]
    if len(group) == 1:
        return first
    steps = np.unique(np.concatenate([each.steps for each in group]))
    values = np.empty((len(steps), len(first.names)), np.float32)
    for part in _parts(len(steps), len(group) * len(first.names)):
        values[part] = geometric_mean(np.stack([each.resampled(steps[part]) for each in group]))
    return Trajectory(first.names, first.shapes, steps, values, bands=first.bands)


def _parts(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows, each of at most `PART_BYTES` with `width` float64 values a row.

    A slice has at least one row. Trajectories hold float32, and only one slice at a time is
    converted to float64.
    """
    size = max(1, PART_BYTES // (8 * max(width, 1)))
    return (slice(start, start + size) for start in range(0, rows, size))


def _table(columns: Mapping[str, Array], steps: NDArray[np.int64]) -> Array:
    """The columns [T] as one array [T, L]."""
    return np.stack(list(columns.values()), axis=1) if columns else np.empty((len(steps), 0))


def _weight(query: TargetQuery, rates: Sequence[float]) -> float:
    """Where the query's rate lies between two, by logarithms: 0 at the lower, 1 at the upper."""
    return math.log(query.lr / rates[0]) / math.log(rates[1] / rates[0])


def _blend_rates(query: TargetQuery, rates: Sequence[float], tables: Sequence[Array]) -> Array:
    return tables[0] if len(tables) == 1 else blend(tables[0], tables[1], _weight(query, rates))


def _blend_spreads(query: TargetQuery, rates: Sequence[float], spreads: Sequence[Array]) -> Array:
    """The spread of the blended targets.

    It is the standard deviation of a weighted mean of two independent logarithms.
    """
    if len(spreads) == 1:
        return spreads[0]
    weight = _weight(query, rates)
    blended: Array = np.hypot((1 - weight) * spreads[0], weight * spreads[1])
    return blended


def _tokens(trajectories: Sequence[Trajectory], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The mean over the runs of the tokens seen by `steps` (`tokens_at`).

    -1 everywhere where one of the runs logged no tokens.
    """
    if not all((each.tokens >= 0).any() for each in trajectories):
        return np.full(len(steps), -1, np.int64)
    counts = [tokens_at(each.steps, each.tokens, steps) for each in trajectories]
    mean: NDArray[np.int64] = np.mean(counts, axis=0).round().astype(np.int64)
    return mean
