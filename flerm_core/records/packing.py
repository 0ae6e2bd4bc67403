"""Vectors of FSLRs as bytes: little-endian IEEE float32, NaN for unmeasured.

Wire, spool and database use the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flerm_core.errors import DataLoss

FLOAT32 = np.dtype("<f4")


def pack(values: NDArray[np.floating] | Sequence[float]) -> bytes:
    """`values` of any shape, row-major, as packed float32."""
    return np.ascontiguousarray(values, dtype=FLOAT32).tobytes()


def unpack(data: bytes | bytearray, columns: int) -> NDArray[np.float32]:
    """The float32 array [len(data) / (4 * columns), columns] whose bytes `pack` made.

    It is a read-only view of `data`. Raises `DataLoss` when the length is not a whole number of
    rows.
    """
    if len(data) % (4 * columns if columns else 1):
        raise DataLoss(f"{len(data)} packed bytes are not whole rows of {columns} float32 values")
    return (
        np.frombuffer(data, dtype=FLOAT32).reshape(-1, columns)
        if columns
        else np.empty((0, 0), FLOAT32)
    )
