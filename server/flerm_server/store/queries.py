"""Questions of the core's, answered from a store. gRPC, REST and pages all ask here, so they cannot disagree."""

from __future__ import annotations

from fnmatch import fnmatchcase

from flerm_core.errors import NotFound, join_names
from flerm_core.matching.targets import Targets, build_targets
from flerm_core.records import validation
from flerm_core.records.queries import BestQuery, RecordingFilter, TargetQuery, TrajectoryQuery
from flerm_core.records.recording import Recording
from flerm_core.trajectory import Trajectory
from flerm_core.tuning.best_lr import Best, LossPoint, SweepRun, best_of_runs, loss_curve
from flerm_server.store.interface import Selection, Store


def select(store: Store, query: TrajectoryQuery) -> tuple[Selection, list[int] | None]:
    """The rows that `query` asks for, and the columns (None: all). Raises `NotFound` when the pattern fits no parameter."""
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
            f"pattern {query.pattern!r} matches none of the parameters; there are {join_names(names)}"
        )
    return selection, columns


def targets(store: Store, query: TargetQuery) -> Targets:
    """The targets that `query` asks for. Raises as the core does, and `NotFound` for an unknown family."""
    validation.validate_query(query)
    sources, blocks = store.sources(query)

    def load(recording: Recording) -> Trajectory:
        return store.trajectory(recording.spec.id)

    return build_targets(query, sources, load, blocks=blocks)


def best(store: Store, query: BestQuery) -> Best:
    """The best rate of a family. Raises as `best_of_runs` does, and `NotFound` for an unknown family."""
    validation.validate_best_query(query)
    store.family(query.family)
    wanted = RecordingFilter(
        family=query.family,
        role=query.role or "base",
        variant=query.variant or "plain",
        optimizer=query.optimizer,
        tags=query.tags,
    )
    return best_of_runs({kind: runs for (_, _, kind), runs in store.runs(wanted).items()}, query)


def losses(store: Store, family: str) -> dict[tuple[str, str], tuple[LossPoint, ...]]:
    """Loss against learning rate of a family by (role, variant), over its completed and diverged recordings."""
    store.family(family)
    found: dict[tuple[str, str], list[SweepRun]] = {}
    for (role, variant, _), runs in store.runs(RecordingFilter(family=family)).items():
        found.setdefault((role, variant), []).extend(runs)
    return {key: points for key, runs in sorted(found.items()) if (points := loss_curve(runs))}
