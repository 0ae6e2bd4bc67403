"""The delivery of one spool file to a registry, exactly once: by the uploader or by `flerm sync`.

A registry takes the same row twice without harm, so every delivery begins at the start of the file.
The file is removed only after the registry has acknowledged the end of the attempt. A file with
rows that are refused for good goes to the quarantine with the reasons, after its other rows are
delivered.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flerm_client.registry.calls import (
    APPEND_BYTES,
    APPEND_ROWS,
    APPEND_SECONDS,
    RegistryCalls,
)
from flerm_client.spool.frames import Frame, FrameType
from flerm_client.spool.paths import quarantine, remove
from flerm_client.spool.reader import SpoolReader, gap_of, message_of, origin_of
from flerm_client.upload.progress import DeliveryProgress
from flerm_core._files import is_own_file
from flerm_core.errors import (
    DataLoss,
    FlermError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Refused,
    Unauthenticated,
    Unreachable,
)
from flerm_core.records.recording import Ending, now
from flerm_proto.recording_messages import ending_to_proto
from flerm_proto.v1 import registry_pb2 as pb

log = logging.getLogger("flerm.delivery")

# Refusals that may end: a new token or a higher quota may come.
_TRANSIENT = (Unauthenticated, PermissionDenied, LimitExceeded)

_MAX_RESTARTS = 3
_MAX_LEASE_SECONDS = 31_536_000.0  # a year, the longest that a server can be told
_EMPTY_SECONDS = 60.0


def is_permanent(error: FlermError) -> bool:
    """Whether sending the same request again cannot succeed."""
    return isinstance(error, InvalidInput | NotFound | Refused | DataLoss) and not isinstance(
        error, _TRANSIENT
    )


class SpoolDelivery:
    """The delivery of one file. Call `advance` until `done`.

    path: the spool file.
    calls: the calls to the registry.
    unfinished: the end to report for an attempt whose file has no end because its process has
        ended; None: wait until the end is written. An end without a moment gets that of the
        process's last write.
    keep: do not move or remove the file, because its folder is a registry.
    """

    def __init__(
        self,
        path: Path,
        calls: RegistryCalls,
        *,
        unfinished: Ending | None = None,
        keep: bool = False,
    ) -> None:
        self.path = path
        self.unfinished = unfinished
        self.progress = DeliveryProgress()
        self.done = False
        self.keep = keep
        self.quarantined: Path | None = None  # where the file is, if anything was refused for good
        self.started = False  # whether the registry knows the attempt
        self._calls = calls
        self._reader = SpoolReader(path)
        self._attempt = 0
        self._acknowledged_step: int | None = None  # the greatest of the attempt
        self._recording_id = ""
        self._end: pb.FinishRecordingRequest | None = None
        self._restarts = 0
        self._refusals: list[str] = []
        self._written_progress = DeliveryProgress()

    def advance(self) -> bool:
        """Sends the next batch, if there is one. Returns whether the file may hold more rows now.

        Raises `Unreachable` and other transient errors, after which it may be called again.
        Permanent refusals are not raised: see `quarantined`.
        """
        if self.done:
            return False
        try:
            return self._advance_or_set_aside()
        except FlermError:
            raise
        except OSError as error:  # such as a network file system that does not answer
            raise Unreachable(
                f"the spool file {self.path} cannot be read or moved ({error.strerror})"
            ) from error

    def _advance_or_set_aside(self) -> bool:
        try:
            more = self._advance()
        except FileNotFoundError:  # another sender has delivered and removed the file
            self.done = True
            return False
        except FlermError as error:
            if isinstance(error, NotFound) and self.started and self._restarts < _MAX_RESTARTS:
                self._start_over(error)
                return True
            if is_permanent(error):
                self._set_aside(str(error))
                return False
            self.progress.problem = str(error)
            self._write_progress()
            raise
        if not self.done:
            self.progress.problem = ""
            self._write_progress()
        return more

    def renew_lease(self) -> float:
        """Reports to the registry that the run goes on; seconds until the next report is due."""
        request = pb.RenewLeaseRequest(recording_id=self._recording_id, attempt=self._attempt)
        seconds = float(self._calls.unary("RenewLease", request).seconds)
        self._require("RenewLease", 0 <= seconds <= _MAX_LEASE_SECONDS, f"a lease of {seconds} s")
        return seconds

    def _advance(self) -> bool:
        offset = self._reader.offset
        damages, refusals = len(self._reader.damage), len(self._refusals)
        before = replace(self.progress)
        try:
            batch, finish, end, more = self._read_batch()
            if batch:
                self._send(batch)
        except (FlermError, OSError):
            # The whole batch is sent again. Rows of it that were stored do no harm the second time.
            self._reader.offset, self.progress = offset, before
            del self._reader.damage[damages:], self._refusals[refusals:]
            raise
        self._reader.offset = end
        # Kept, because a registry that fails now gets the end again when no frame is left to read.
        self._end = finish or self._end
        if more:
            return True
        if self._end is None and self.unfinished is not None:
            last_write = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
            ended = replace(self.unfinished, finished_at=self.unfinished.finished_at or last_write)
            self._end = ending_to_proto(ended)
        if self._end is not None:
            self._finish(self._end)
        return False

    def _read_batch(
        self,
    ) -> tuple[list[pb.Measurement], pb.FinishRecordingRequest | None, int, bool]:
        """Rows for one request, the end if it was read, the file offset, whether rows are left."""
        batch: list[pb.Measurement] = []
        size = 0
        finish: pb.FinishRecordingRequest | None = None
        end = self._reader.offset
        for frame in self._reader:
            if frame.type == FrameType.MEASUREMENT:
                size += len(frame.payload)
                if batch and (len(batch) == APPEND_ROWS or size > APPEND_BYTES):
                    return batch, finish, end, True
                batch.append(message_of(frame, pb.Measurement))
            elif frame.type == FrameType.FINISH:
                finish = message_of(frame, pb.FinishRecordingRequest)
            elif frame.type == FrameType.START and not self.started:
                self._start(message_of(frame, pb.StartRecordingRequest))
            elif frame.type == FrameType.GAP:
                self._report_gap(frame)
            end = frame.end
        return batch, finish, end, False

    def _start(self, request: pb.StartRecordingRequest) -> None:
        request.attempt.sent_at.GetCurrentTime()
        answer = self._calls.unary("StartRecording", request)
        self._require(
            "StartRecording",
            answer.recording_id == request.spec.id and answer.attempt > 0,
            f"attempt {answer.attempt} of recording {answer.recording_id[:80]!r}",
        )
        self._recording_id, self._attempt = answer.recording_id, answer.attempt
        self.started = True

    def _start_over(self, error: NotFound) -> None:
        """Begins at the start of the file: the registry's database was restored or replaced."""
        log.warning("%s: %s; sending it again from the start", self.path.name, error)
        self._restarts += 1
        self.started = False
        self._acknowledged_step = None
        self.progress = DeliveryProgress()
        self._refusals.clear()
        self._reader = SpoolReader(self.path)
        self._end = None

    def _report_gap(self, frame: Frame) -> None:
        gap = gap_of(frame)
        log.warning(
            "%s: %d measurements from step %d to %d were not written: %s",
            self.path.name,
            gap.lost,
            gap.first_step,
            gap.last_step,
            gap.reason,
        )

    def _send(self, rows: list[pb.Measurement]) -> None:
        self._require_start()
        try:
            self._append(rows)
            self.progress.acknowledged += len(rows)
        except FlermError as error:
            if isinstance(error, NotFound) or not is_permanent(error):
                raise
            if len(rows) == 1:
                log.warning("%s: step %d refused: %s", self.path.name, rows[0].step, error)
                self._refusals.append(f"step {rows[0].step}: {error}")
                self.progress.refused += 1
                return
            # A request is stored or refused as a whole. Halving it isolates the rows at fault.
            middle = len(rows) // 2
            self._send(rows[:middle])
            self._send(rows[middle:])

    def _append(self, rows: list[pb.Measurement]) -> None:
        request = pb.AppendRequest(
            recording_id=self._recording_id,
            attempt=self._attempt,
            measurements=rows,
            acknowledged_step=self._acknowledged_step,
        )
        answer = self._calls.unary("Append", request, seconds=APPEND_SECONDS)
        self._require(
            "Append",
            answer.committed == len(rows),
            f"{answer.committed} of {len(rows)} rows",
        )
        known = [] if self._acknowledged_step is None else [self._acknowledged_step]
        self._acknowledged_step = max([*known, *(row.step for row in rows)])

    def _finish(self, request: pb.FinishRecordingRequest) -> None:
        self._require_start()
        request.recording_id, request.attempt = self._recording_id, self._attempt
        request.ClearField("acknowledged_step")
        if self._acknowledged_step is not None:
            request.acknowledged_step = self._acknowledged_step
        request.sent_at.GetCurrentTime()
        answer = self._calls.unary("FinishRecording", request)
        self._require(
            "FinishRecording",
            answer.spec.id == self._recording_id,
            f"recording {answer.spec.id[:80]!r}",
        )
        reasons = [*self._refusals, *map(str, self._reader.damage)]
        if reasons:
            self._set_aside("; ".join(reasons))
        elif not self.keep:
            remove(self.path)
        self.done = True

    def _require_start(self) -> None:
        if not self.started:
            raise DataLoss(f"{self.path.name} does not say which recording it holds")

    def _require(self, method: str, acknowledged: bool, told: str) -> None:
        """Raises `Unreachable` for an answer that does not acknowledge what was sent.

        A proxy, or a server of something else, may answer every call with an empty message. The
        spool file stays until a registry says what it has.
        """
        if not acknowledged:
            raise Unreachable(
                f"{self._calls.address.text} answered {method} with {told}, which is not "
                "what was sent: see whether a FLeRM registry is at this address"
            )

    def _set_aside(self, why: str) -> None:
        log.error("%s set aside: %s", self.path.name, why)
        self.quarantined = self.path if self.keep else quarantine(self.path, why)
        self.progress.problem = why
        self.done = True

    def _write_progress(self) -> None:
        if self.progress == self._written_progress or self.keep:
            return
        if self.progress.write(self.path):
            self._written_progress = replace(self.progress)


def is_abandoned_empty(path: Path) -> bool:
    """Whether `path` is empty because its process ended between creating it and writing to it.

    A living writer writes to a new file at once, or removes the file when the disk is full.
    """
    try:
        idle = now().timestamp() - path.stat().st_mtime > _EMPTY_SECONDS
        return idle and next(iter(SpoolReader(path)), None) is None
    except (OSError, DataLoss, Refused):
        return False


def can_take_over(path: Path) -> tuple[bool, str]:
    """Whether a process that did not write `path` may deliver it, and if not, why.

    It may deliver a file whose owner has ended or is not named in the file. It may also deliver a
    file that holds the end of the attempt, because a second delivery of a whole file changes
    nothing. It may take a file that is no spool file, because the delivery moves such a file to the
    quarantine.
    """
    if path.exists() and not is_own_file(path):
        return False, f"{path.name} belongs to another user, or is a link"
    try:
        frames = iter(SpoolReader(path))
        first: Any = next(frames, None)
        if first is None:
            return False, f"{path.name} is empty"
        owner = origin_of(first).owner if first.type == FrameType.OWNER else None
        if owner is not None and owner.on_this_machine and not owner.alive:
            return True, ""
        if any(frame.type == FrameType.FINISH for frame in frames):
            return True, ""
    except FileNotFoundError:
        return False, f"{path.name} is gone"
    except DataLoss:
        return True, ""  # nobody writes the file; its delivery sets it aside with the reason
    except Refused as error:
        return False, str(error)
    except OSError as error:
        return False, f"{path.name} cannot be read ({error.strerror})"
    if owner is None:
        return True, ""
    where = "is still running" if owner.on_this_machine else "may still be running there"
    return False, f"{path.name} belongs to {owner}, which {where}"
