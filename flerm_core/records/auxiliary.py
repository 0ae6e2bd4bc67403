"""What the rows of a recording hold beside their FSLRs: scalars (sharpness), vectors of a value a parameter (multipliers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flerm_core.records.recording import Measurement


@dataclass(frozen=True, slots=True, eq=False)
class Auxiliary:
    """By name, at T optimiser steps, NaN where a row has none.

    steps: int64 [T], ascending. scalars: float64 [T] each. vectors: float32 [T, L] each, in the order of the recording's
    parameters.
    """

    steps: NDArray[np.int64]
    scalars: dict[str, NDArray[np.float64]]
    vectors: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, rows: Sequence[Measurement], parameters: int) -> Auxiliary:
        """Those of measurements in the order of their steps."""
        count = len(rows)
        found = cls(np.array([row.step for row in rows], np.int64), {}, {})
        for at, row in enumerate(rows):
            for name, value in row.scalars.items():
                found.scalars.setdefault(name, np.full(count, np.nan))[at] = value
            for name, vector in row.vectors.items():
                found.vectors.setdefault(name, np.full((count, parameters), np.nan, np.float32))[
                    at
                ] = vector
        return found
