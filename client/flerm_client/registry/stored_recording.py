"""A recording that is put together from spool files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flerm_client.spool.reader import SpoolContent
from flerm_core.records.recording import (
    Ending,
    Measurement,
    Recording,
    RecordingSpec,
    in_order,
)
from flerm_core.trajectory import Trajectory

log = logging.getLogger("flerm.spool")


@dataclass(slots=True)
class StoredRecording:
    """A recording that is put together from the spool files of its attempts, in their order."""

    attempts: list[SpoolContent]

    @classmethod
    def of(cls, contents: Sequence[SpoolContent]) -> StoredRecording:
        """The recording with the attempts in `contents`, in any order.

        Attempts with other parameters than the first are left out.
        """
        by_id = {each.attempt.id: each for each in sorted(contents, key=lambda at: at.attempt.id)}
        attempts = [by_id[each.id] for each in in_order([each.attempt for each in by_id.values()])]
        same = [each for each in attempts if each.spec.parameters == attempts[0].spec.parameters]
        if len(same) < len(attempts):
            log.warning(
                "recording %s: attempts with other parameters than the first are left out",
                attempts[0].spec.id,
            )
        return cls(same)

    @property
    def last(self) -> SpoolContent:
        """The latest attempt."""
        return self.attempts[-1]

    @property
    def spec(self) -> RecordingSpec:
        """The specification of the first attempt."""
        return self.attempts[0].spec

    def rows(self) -> list[Measurement]:
        """The rows that count: an attempt replaces earlier ones from its first step on."""
        visible: dict[int, Measurement] = {}
        for at, content in enumerate(self.attempts):
            later = [other.attempt.resume_at for other in self.attempts[at + 1 :]]
            visible.update(
                {
                    row.step: row
                    for row in content.rows
                    if not any(resume_at <= row.step for resume_at in later)
                }
            )
        return [visible[step] for step in sorted(visible)]

    def trajectory(self) -> Trajectory:
        """The rows that count, as a trajectory."""
        return Trajectory.from_measurements(self.spec.parameters, self.rows())

    def recording(self) -> Recording:
        """The recording as a registry reports it."""
        rows = self.rows()
        ending = self.last.ending
        changed_at = datetime.fromtimestamp(self.last.path.stat().st_mtime, UTC)
        logged = [row.tokens for row in rows if row.tokens is not None]
        ended = (ending or Ending()).as_dict() | {"status": self.last.status}
        if ended["tokens"] is None and logged:
            ended["tokens"] = logged[-1]
        if ending is not None:
            ended["finished_at"] = ended["finished_at"] or changed_at
        return Recording(
            spec=self.spec,
            attempt=len(self.attempts),
            rows=len(rows),
            first_step=rows[0].step if rows else 0,
            last_step=rows[-1].step if rows else 0,
            created_at=self.attempts[0].attempt.started_at,
            updated_at=changed_at,
            parameter_count=len(self.spec.parameters),
            **ended,
        )
