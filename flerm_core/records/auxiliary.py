"""Auxiliary values: what rows hold beside their FSLRs.

Scalars (sharpness) are one number a row; vectors (the multipliers in force) one number a parameter
and row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Auxiliary(NamedTuple):
    """The auxiliary values of one row, by name.

    vectors: float32 [L] each, in the order of the recording's parameters.
    """

    scalars: Mapping[str, float]
    vectors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class AuxiliaryColumns:
    """The auxiliary values of T rows, by name; NaN where a row has none.

    steps: int64 [T], ascending.
    scalars: float64 [T] each.
    vectors: float32 [T, L] each, in the order of the recording's parameters.
    """

    steps: NDArray[np.int64]
    scalars: dict[str, NDArray[np.float64]]
    vectors: dict[str, NDArray[np.float32]]

    @classmethod
    def of(
        cls, steps: Sequence[int] | NDArray[np.int64], rows: Sequence[Auxiliary | None], width: int
    ) -> AuxiliaryColumns:
        """The columns of `rows` [T] at `steps` [T], for `width` = L parameters.

        A row that is None has no auxiliary values.
        """
        found = cls(np.array(steps, np.int64), {}, {})
        for at, row in enumerate(rows):
            if row is None:
                continue
            for name, value in row.scalars.items():
                found.scalars.setdefault(name, np.full(len(rows), np.nan))[at] = value
            for name, vector in row.vectors.items():
                empty = np.full((len(rows), width), np.nan, np.float32)
                found.vectors.setdefault(name, empty)[at] = vector
        return found
