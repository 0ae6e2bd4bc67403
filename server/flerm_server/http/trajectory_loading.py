"""Trajectories as figures need them: thinned in the database, never all rows in memory."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np

from flerm_core.figures.trajectory_figure import MAX_POINTS, MAX_TENSORS
from flerm_core.trajectory import Trajectory
from flerm_server.store.interface import Selection, Store


def thinned_trajectory(
    store: Store, recording_id: str, *, first_step: int | None = None, last_step: int | None = None
) -> Trajectory:
    """At most as many rows of a recording, evenly chosen, as a plot can show. Raises `NotFound`."""
    return load_selection(
        store,
        store.select(
            recording_id, first_step=first_step, last_step=last_step, max_points=MAX_POINTS
        ),
    )


def load_selection(store: Store, selection: Selection) -> Trajectory:
    """The rows of a selection in memory."""
    listed = selection.recording.spec.parameters
    blocks = list(store.read(selection))
    empty = np.empty((0, len(listed)), np.float32)
    return Trajectory(
        listed.names,
        listed.shapes,
        np.concatenate([np.empty(0, np.int64), *(each.steps for each in blocks)]),
        np.concatenate([empty, *(each.values for each in blocks)]),
        bands=listed.bands,
        losses=np.concatenate([np.empty(0), *(each.losses for each in blocks)]),
        learning_rates=np.concatenate([np.empty(0), *(each.learning_rates for each in blocks)]),
        tokens=np.concatenate([np.empty(0, np.int64), *(each.tokens for each in blocks)]),
    )


def matching_names(names: list[str] | tuple[str, ...], pattern: str) -> list[str]:
    """The names that fit a shell-style pattern, or are just that; at most as many as a figure can show."""
    if not pattern:
        return []
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)][:MAX_TENSORS]
