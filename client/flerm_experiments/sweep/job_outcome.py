"""How a job of a sweep ended, and how its time is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """status: completed or diverged. loss: the final loss. seconds: of wall time."""

    status: str
    loss: float
    seconds: float


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
