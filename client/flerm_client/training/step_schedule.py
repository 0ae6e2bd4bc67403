"""At which optimiser steps something is due: a measurement, or a match."""

from __future__ import annotations

from flerm_core.errors import InvalidInput
from flerm_core.records.recording import EstimatorSettings

_NEVER = 2**63 - 1


class StepSchedule:
    """The optimiser steps start, start + every, …, counted from 1; with `every` 0 the first only.

    A step at which nothing could be measured (a skipped GradScaler step, a rate of 0) is tried
    again at the next step. `next` is the step from which on something is due.
    """

    def __init__(self, start: int, every: int) -> None:
        self._start = start
        self._every = every
        self.next = start

    def due(self, step: int) -> bool:
        """Whether `step` is one of the schedule's steps, or stands in for one that was missed."""
        return step >= self.next

    def done(self, step: int) -> None:
        """What was due happened at `step`. A late step does not shift the steps that follow."""
        if self.due(step):
            self.next = self._after(step)

    def resume(self, after: int, pending: int) -> None:
        """Goes on after step `after`, where the schedule of the checkpoint had `next` = `pending`.

        A step that was missed is still due. All others go by this schedule's own `every`.
        """
        self.next = pending if pending <= after else self._after(after)

    def _after(self, step: int) -> int:
        """The first of the schedule's steps after `step`."""
        if step < self._start:
            return self._start
        if not self._every:
            return _NEVER
        return self._start + ((step - self._start) // self._every + 1) * self._every


def check_settings(settings: EstimatorSettings) -> None:
    """Raises `InvalidInput` naming the first count that is out of range.

    `every` may be 0: one measurement, at step `start`.
    """
    for name, least in (("every", 0), ("warmup", 1), ("samples", 1), ("start", 1)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInput(f"{name}={value!r} is not allowed; a whole number from {least} is")
