"""Measurements as columns.

Many rows are checked, stored and sent in this form, without an object for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flerm_core.errors import DataLoss, InvalidInput
from flerm_core.records.auxiliary import Auxiliary
from flerm_core.records.packing import pack, unpack
from flerm_core.records.recording import Measurement

EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementBatch:
    """T rows of one attempt. Entry t of every column belongs to row t.

    steps: optimiser steps.
    fslr: packed float32 (`flerm_core.records.packing`), one vector for each row.
    losses, learning_rates, tokens: None where not logged.
    measured_at: microseconds since 1970 UTC, or None.
    auxiliary: None for a row that has no auxiliary values.

    Nothing is checked here; `flerm_core.records.measurement_validation.validate_batch` checks.
    """

    steps: Sequence[int]
    fslr: Sequence[bytes]
    losses: Sequence[float | None]
    learning_rates: Sequence[float | None]
    tokens: Sequence[int | None]
    measured_at: Sequence[int | None]
    auxiliary: Sequence[Auxiliary | None]

    def __len__(self) -> int:
        return len(self.steps)

    @classmethod
    def of(cls, rows: Sequence[Measurement]) -> MeasurementBatch:
        """The rows as columns."""
        return cls(
            steps=[row.step for row in rows],
            fslr=[pack(row.values) for row in rows],
            losses=[row.loss for row in rows],
            learning_rates=[row.learning_rate for row in rows],
            tokens=[row.tokens for row in rows],
            measured_at=[
                None if row.measured_at is None else (row.measured_at - EPOCH) // MICROSECOND
                for row in rows
            ],
            auxiliary=[row.auxiliary for row in rows],
        )

    def __iter__(self) -> Iterator[Measurement]:
        """The rows one by one.

        Raises `InvalidInput` for bytes that are not whole float32 values and for times beyond the
        year 9999.
        """
        for at, step in enumerate(self.steps):
            micros, auxiliary = self.measured_at[at], self.auxiliary[at]
            try:
                values = unpack(self.fslr[at], 1)[:, 0]
                measured_at = None if micros is None else EPOCH + micros * MICROSECOND
            except DataLoss as error:
                raise InvalidInput(f"values at step {step}: {error}") from error
            except OverflowError as error:
                raise InvalidInput(
                    f"measured_at at step {step}: {micros} µs is no date; allowed are years 1 to "
                    "9999"
                ) from error
            yield Measurement(
                step=step,
                values=values,
                loss=self.losses[at],
                learning_rate=self.learning_rates[at],
                tokens=self.tokens[at],
                measured_at=measured_at,
                scalars=auxiliary.scalars if auxiliary else {},
                vectors=auxiliary.vectors if auxiliary else {},
            )
