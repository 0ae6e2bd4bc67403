"""When a run is measured, and when it is matched."""

from __future__ import annotations

_NEVER = 2**63 - 1


class StepSchedule:
    """The optimiser steps start, start + every, …, counted from 1; with `every` 0 only the first of them.

    A step at which nothing came about (a skipped GradScaler step, a rate of 0) is tried again at the next one. `next` is the
    step from which on something is due.
    """

    def __init__(self, start: int, every: int) -> None:
        self._start = start
        self._every = every
        self.next = start

    def due(self, step: int) -> bool:
        """Whether `step` is one of them, or stands in for one that was missed."""
        return step >= self.next

    def done(self, step: int) -> None:
        """What was due came about at `step`. The steps that follow are those of the beginning, however late this one was."""
        if self.due(step):
            self.next = self._after(step)

    def resume(self, after: int, pending: int) -> None:
        """Goes on behind step `after`, where another clock's `next` was `pending`: what was missed is still due, what follows
        goes by this clock's own steps."""
        self.next = pending if pending <= after else self._after(after)

    def _after(self, step: int) -> int:
        if step < self._start:
            return self._start
        return (
            self._start + ((step - self._start) // self._every + 1) * self._every
            if self._every
            else _NEVER
        )
