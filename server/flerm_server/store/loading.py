"""A trajectory in memory from the rows that a store gives in parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from flerm_core.records.recording import ParameterList
from flerm_core.trajectory import Trajectory

if TYPE_CHECKING:
    from flerm_server.store.interface import Rows


def trajectory_of(parameters: ParameterList, count: int, parts: Iterable[Rows]) -> Trajectory:
    """The trajectory of `count` rows, which `parts` hold together."""
    values = np.empty((count, len(parameters)), np.float32)
    steps, tokens = np.empty(count, np.int64), np.empty(count, np.int64)
    losses, rates = np.empty(count), np.empty(count)
    filled = 0
    for rows in parts:
        part = slice(filled, filled + len(rows.steps))
        steps[part], values[part], tokens[part] = rows.steps, rows.values, rows.tokens
        losses[part], rates[part] = rows.losses, rows.learning_rates
        filled = part.stop
    return Trajectory(
        parameters.names,
        parameters.shapes,
        steps,
        values,
        bands=parameters.bands,
        losses=losses,
        learning_rates=rates,
        tokens=tokens,
    )
