"""How a job of a sweep ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """status: completed or diverged. loss: the final loss. seconds: of wall time."""

    status: str
    loss: float
    seconds: float
