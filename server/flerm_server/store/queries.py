"""The one place that answers questions about what a store holds.

gRPC, REST, pages and figures all ask here, so that no two of them can give different answers. The
rules themselves are the core's; this module fetches what the rules need. `store` may be an
`AuthorizedStore`: every question then covers only what the caller may read, and raises
`PermissionDenied` as the store does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial

from flerm_core.errors import NotFound, join_names
from flerm_core.matching import match_cautions as cautions
from flerm_core.matching import matched_rates as rates
from flerm_core.matching import target_ratios as ratios
from flerm_core.matching.batch_change import BatchChange
from flerm_core.matching.match import Multipliers, multipliers
from flerm_core.matching.match_cautions import RunFacts
from flerm_core.matching.matched_rates import MatchedRates
from flerm_core.matching.targets import Targets, build_targets
from flerm_core.records import validation
from flerm_core.records.auxiliary import AuxiliaryColumns
from flerm_core.records.queries import BestQuery, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import STATUSES, Family, Recording, content_digest
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best, LossPoint, SweepRun, loss_curve
from flerm_core.tuning.experiment_settings import (
    ExperimentRun,
    Settings,
    bigger_than_base,
    scales_of,
    settings_of,
)
from flerm_core.tuning.experiment_words import check_picked
from flerm_core.tuning.family_best import best_of
from flerm_core.tuning.scale import Scale
from flerm_core.tuning.transfer_report import TransferReport, transfer_report
from flerm_server.store.auxiliary_codec import decode
from flerm_server.store.family_runs import FamilyRun, FamilyRuns
from flerm_server.store.interface import Selection, Store
from flerm_server.store.seed_coverage import SeedCoverage, seed_coverage
from flerm_server.store.unknown_recording import unknown_recording

LossPoints = Sequence[LossPoint]

RoleAndVariant = tuple[str, str]
"""What tells the kinds of run of one family apart: ("base", "plain"), ("scaled", "matched"), ..."""


@dataclass(frozen=True, slots=True)
class FamilyOverview:
    """A family at a glance.

    `report`: whether the base's rate carried over. `runs`: all, newest first, and `settings` what
    each of them was run with. `counts` and `coverage` have one entry for each role and variant
    recorded, base first. `statuses`: those that occur, in the order of `STATUSES`.
    """

    family: Family
    report: TransferReport
    runs: FamilyRuns
    settings: Sequence[Settings]
    counts: Mapping[RoleAndVariant, int]
    coverage: Mapping[RoleAndVariant, SeedCoverage]
    statuses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FamilySummary:
    """A family in a list. active_at: when one of its recordings was last written to."""

    family: Family
    report: TransferReport
    active_at: datetime


def select(store: Store, query: TrajectoryQuery) -> tuple[Selection, list[int] | None]:
    """The rows that `query` asks for, and the columns (None: all).

    Raises `InvalidInput`, and `NotFound` for an unknown recording or a pattern that no parameter's
    name fits.
    """
    validation.validate_trajectory_query(query)
    selection = store.select(
        query.recording_id,
        first_step=query.first_step,
        last_step=query.last_step,
        max_points=query.max_points,
    )
    if not query.pattern:
        return selection, None
    names = selection.recording.spec.parameters.names
    columns = [at for at, name in enumerate(names) if fnmatchcase(name, query.pattern)]
    if not columns:
        raise NotFound(
            f"pattern {query.pattern!r} matches none of the parameters; "
            f"there are {join_names(names)}"
        )
    return selection, columns


def trajectory(store: Store, query: TrajectoryQuery) -> Trajectory:
    """What `query` asks for, in memory; `query.max_points` bounds how much that is.

    Raises as `select` does.
    """
    return store.load(*select(store, query))


def targets(store: Store, query: TargetQuery, *, max_values: int = 0) -> Targets:
    """The targets that `query` asks for.

    max_values: at most as many, thinned to fewer steps; 0: all. Raises as `Store.sources`,
    `Store.computing` and `build_targets` do.
    """

    def compute() -> Targets:
        sources, blocks = store.sources(query)
        every = [each for group in sources.values() for each in group]
        with store.computing():
            loaded = dict(
                zip((each.spec.id for each in every), store.trajectories(every), strict=True)
            )
            return build_targets(
                query,
                sources,
                lambda recording: loaded[recording.spec.id],
                blocks=blocks,
                max_values=max_values,
            )

    # Tags of recordings may change without a change of the family's runs.
    if query.tags:
        return compute()
    return store.kept(query.family, content_digest([repr(query), max_values]), compute)


def match(
    store: Store,
    query: TargetQuery,
    measured: Mapping[str, float],
    *,
    batch_size: int | None = None,
    total_steps: int | None = None,
) -> tuple[Targets, Multipliers, BatchChange | None]:
    """The targets that `query` asks for, and the multipliers of the tensors in `measured`.

    measured: FSLRs by name, NaN where unmeasured. They are compared with the targets at
    `query.step`; None: at the first measured step. Without `query.names` the tensors are those
    measured.

    batch_size, total_steps: of the asking run, as in `BatchChange`; None: as the base's.

    Raises as `targets`, `multipliers` and `BatchChange.asked` do.
    """
    found = targets(store, query if query.names else replace(query, names=tuple(measured)))
    change = BatchChange.asked(found, batch_size, total_steps)
    times = 1.0 if change is None else change.rate
    return found, multipliers(dict(found), measured, times=times), change


def match_cautions(store: Store, found: Targets, run: RunFacts) -> tuple[str, ...]:
    """When not to trust a match of `run` to the targets `found`, and what regret to expect."""
    ask = partial(best, store)
    return cautions.match_cautions(found, run, best=ask, recording=store.recording)


def matched_rates(store: Store, recording_id: str, *, max_points: int = 0) -> MatchedRates:
    """The learning rates that a matched run trained at, with the targets behind them.

    The rows are thinned to `max_points` (0: all). Raises `NotFound` for an unknown recording and
    for one that was not matched.
    """
    query = TrajectoryQuery(recording_id=recording_id, max_points=max_points)
    selection, run, columns = _with_auxiliary(store, query)
    found = selection.recording
    with store.computing():
        return rates.matched_rates(
            found,
            run,
            columns,
            find=store.recording,
            load=store.trajectory,
            blocks=store.family(found.spec.family).blocks,
        )


def target_ratios(
    store: Store, base_id: str, other_id: str, *, raw: bool = False, max_points: int = 0
) -> Trajectory:
    """How far the updates of recording `other_id` move the outputs, over the targets that recording
    `base_id` gives for its tensors; 1: as far.

    raw: FSLRs as measured, at learning rate 1, in place of rate · multiplier · FSLR. Both are
    thinned to `max_points` rows (0: all). Raises `NotFound` as `flerm_core.matching.target_ratios`
    does.
    """

    def read(recording_id: str) -> Trajectory:
        query = TrajectoryQuery(recording_id=recording_id, max_points=max_points)
        if raw:
            return trajectory(store, query)
        selection, found, columns = _with_auxiliary(store, query)
        return rates.effective_fslrs(found, columns, selection.recording.spec.lr)

    family = store.recording(base_id).spec.family
    return ratios.target_ratios(read(base_id), read(other_id), blocks=store.family(family).blocks)


def _with_auxiliary(
    store: Store, query: TrajectoryQuery
) -> tuple[Selection, Trajectory, AuxiliaryColumns]:
    """A trajectory with the auxiliary values of its rows."""
    selection, _ = select(store, query)
    packed = [decode(each) for rows in store.read(selection) for each in rows.auxiliary]
    columns = AuxiliaryColumns.of(selection.steps, packed, selection.recording.parameter_count)
    return selection, store.load(selection), columns


def best(store: Store, query: BestQuery) -> Best:
    """The best rate of a family, the same as in its transfer report.

    Raises as `best_of` does, and `NotFound` for an unknown family.
    """
    validation.validate_best_query(query)
    found = store.family_runs(query.family)
    # A query without the name, for the family may be renamed.
    asked = content_digest([repr(replace(query, family=""))])
    kept = found.answers.get(
        ("best", asked), lambda: best_of(_experiments(found), query, found.answers.curves)
    )
    return replace(kept, family=query.family)


def losses(store: Store, family: str) -> dict[RoleAndVariant, tuple[LossPoint, ...]]:
    """Loss against learning rate by role and variant, over the completed and diverged recordings of
    a family.

    Raises `NotFound` for an unknown family.
    """
    found = store.family_runs(family)
    return found.answers.get("losses", lambda: _losses(found.runs))


def transfer(store: Store, family: str, chosen: Mapping[str, str] | None = None) -> TransferReport:
    """Whether the base's rate carried over to the other scales of a family.

    chosen: setting to value, as in `transfer_report`.

    Raises `NotFound` for an unknown family, and for a choice that no recording of the base fits.
    """
    report = _transfer(store.family_runs(family), chosen or {})
    check_picked(report.kinds, chosen or {})
    return report


def family_overview(
    store: Store, name: str, chosen: Mapping[str, str] | None = None
) -> FamilyOverview:
    """What is recorded of a family, and whether the rate of its base carries over.

    chosen: as in `transfer`, but a choice that no recording of the base fits is left out: the
        form of a page sends the choices of all settings together.

    Raises `NotFound` for an unknown family.
    """
    found = store.family_runs(name)
    counts = found.answers.get("counts", lambda: _counts(found.runs))
    statuses = Counter(found.answers.get("statuses", lambda: Counter(map(_status, found.runs))))
    statuses["running"] -= len(found.lapsed)
    statuses["interrupted"] += len(found.lapsed)
    return FamilyOverview(
        family=found.family,
        report=_transfer(found, chosen or {}),
        runs=found,
        settings=_settings(found),
        counts=counts,
        coverage=found.answers.get(("coverage", found.lapsed), lambda: _coverage(found)),
        statuses=tuple(status for status in STATUSES if statuses[status]),
    )


def named_recordings(store: Store, ids: Sequence[str]) -> list[Recording]:
    """The recordings with these ids, in their order, without their parameter lists.

    Raises `NotFound` for an id that no recording has.
    """
    found = store.recordings_by_id(ids)
    known = {each.spec.id for each in found}
    for each in ids:
        if each not in known:
            raise unknown_recording(each)
    return found


def model_scales(store: Store, recordings: Sequence[Recording]) -> list[Scale]:
    """How the model of each recording differs from the base of its family.

    Raises `NotFound` for an unknown family.
    """
    families = {each.spec.family for each in recordings}
    scales = {name: _scales(store.family_runs(name)) for name in families}
    return [scales[each.spec.family].get(each.spec.id, Scale()) for each in recordings]


def family_summaries(store: Store, families: Sequence[Family]) -> list[FamilySummary]:
    """What each family came to; those that were deleted meanwhile are left out."""
    summaries = []
    for family in families:
        with suppress(NotFound):
            found = store.family_runs(family.name)
            summaries.append(FamilySummary(found.family, _transfer(found, {}), found.active_at))
    return summaries


def _scales(found: FamilyRuns) -> Mapping[str, Scale]:
    """The scale of each run by its id."""

    def answer() -> dict[str, Scale]:
        runs = _experiments(found)
        return scales_of(runs, bigger_than_base(runs))

    return found.answers.get("scales", answer)


def _settings(found: FamilyRuns) -> tuple[Settings, ...]:
    """What each run was run with. Runs of equal settings share one object."""

    def answer() -> tuple[Settings, ...]:
        known: dict[Hashable, Settings] = {}
        settings = []
        for each in found.runs:
            key = (id(each.config), each.optimizer_key, tuple(each.tags.items()))
            if key not in known:
                known[key] = settings_of(each.config, each.tags, each.optimizer_key)
            settings.append(known[key])
        return tuple(settings)

    return found.answers.get("settings", answer)


def _experiments(found: FamilyRuns) -> tuple[ExperimentRun, ...]:
    """The runs with what each was run with."""
    return found.answers.get(
        "experiments",
        lambda: tuple(
            ExperimentRun(each.id, each.role, each.variant, settings, each.run, each.tags)
            for each, settings in zip(found.runs, _settings(found), strict=True)
        ),
    )


def _transfer(found: FamilyRuns, chosen: Mapping[str, str]) -> TransferReport:
    kept = found.answers.get(
        ("transfer", tuple(sorted(chosen.items()))),
        lambda: transfer_report(
            found.family.name, _experiments(found), chosen, found.answers.curves
        ),
    )
    return replace(kept, family=found.family.name)  # which may have been renamed


def _losses(runs: Sequence[FamilyRun]) -> dict[RoleAndVariant, tuple[LossPoint, ...]]:
    by_kind: dict[RoleAndVariant, list[SweepRun]] = {}
    for each in runs:
        by_kind.setdefault((each.role, each.variant), []).append(each.run)
    return {kind: points for kind, its in sorted(by_kind.items()) if (points := loss_curve(its))}


def _counts(runs: Sequence[FamilyRun]) -> dict[RoleAndVariant, int]:
    return dict(sorted(Counter((each.role, each.variant) for each in runs).items()))


def _status(run: FamilyRun) -> str:
    return run.status


def _coverage(found: FamilyRuns) -> dict[RoleAndVariant, SeedCoverage]:
    by_kind: dict[RoleAndVariant, list[FamilyRun]] = {}
    for each in found.runs:
        by_kind.setdefault((each.role, each.variant), []).append(each)
    return {kind: seed_coverage(its, found.lapsed) for kind, its in sorted(by_kind.items())}
