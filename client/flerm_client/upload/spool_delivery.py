"""Bringing one spool file to a registry, exactly once: what the uploader and `flerm sync` do.

The registry takes the same row twice without harm, so a delivery simply begins at the file's start; it removes the file only
after the end of the attempt was acknowledged. What is refused for good is set aside with the reason, the rest is delivered.
"""

from __future__ import annotations

import logging
from dataclasses import replace
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
from flerm_client.spool.reader import Origin, SpoolReader, gap_of, message_of, origin_of
from flerm_client.upload.progress import DeliveryProgress
from flerm_core.errors import (
    DataLoss,
    FlermError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Refused,
    Unauthenticated,
)
from flerm_core.records.recording import now
from flerm_proto.v1 import registry_pb2 as pb

log = logging.getLogger("flerm.delivery")

# A new token, a raised quota may come: these are waited for, though the answer was no.
_PASSING = (Unauthenticated, PermissionDenied, LimitExceeded)


def is_permanent(error: FlermError) -> bool:
    """Whether sending the same again can change nothing."""
    return isinstance(error, InvalidInput | NotFound | Refused | DataLoss) and not isinstance(
        error, _PASSING
    )


class SpoolDelivery:
    """The way of one file. Call `advance` until `done`; it raises what went wrong, after which it may be called again.

    `unfinished`: the status to report for an attempt whose file has no end (its process died); None: wait for the end.
    `keep`: leave the file where it is, whatever comes of it (its folder is a registry).
    """

    def __init__(
        self,
        path: Path,
        calls: RegistryCalls,
        *,
        unfinished: str | None = None,
        keep: bool = False,
    ) -> None:
        self.path = path
        self.unfinished = unfinished
        self.progress = DeliveryProgress()
        self.done = False
        self.keep = keep
        self.quarantined: Path | None = None
        self.started = False  # whether the registry knows the attempt
        self._calls = calls
        self._reader = SpoolReader(path)
        self._attempt = 0
        self._recording_id = ""
        self._restarts = 0
        self._reasons: list[str] = []
        self._told = DeliveryProgress()

    def advance(self) -> bool:
        """Sends the next batch, if there is one; whether there may be more right now.

        Raises `Unreachable` and other passing errors. Refusals for good do not raise: see `quarantined`.
        """
        if self.done:
            return False
        try:
            more = self._advance()
        except FileNotFoundError:  # another sender has delivered and removed it
            self.done = True
            return False
        except FlermError as error:
            if is_permanent(error):
                self._set_aside(str(error))
                return False
            self.progress.problem = str(error)
            self._tell()
            raise
        if not self.done:
            self.progress.problem = ""
            self._tell()
        return more

    @property
    def offset(self) -> int:
        """How far the file was read."""
        return self._reader.offset

    def renew_lease(self) -> float:
        """Tells the registry that the run lives; seconds until that must be said again."""
        request = pb.RenewLeaseRequest(recording_id=self._recording_id, attempt=self._attempt)
        return float(self._calls.unary("RenewLease", request).seconds)

    def _advance(self) -> bool:
        offset, damages, reasons = self._reader.offset, len(self._reader.damage), len(self._reasons)
        before = replace(self.progress)
        batch: list[pb.Measurement] = []
        size = 0
        more = False
        finish: pb.FinishRecordingRequest | None = None
        position = offset
        try:
            for frame in self._reader:
                if frame.kind == FrameType.MEASUREMENT:
                    if batch and (
                        len(batch) == APPEND_ROWS or size + len(frame.payload) > APPEND_BYTES
                    ):
                        more = True
                        break
                    batch.append(message_of(frame, pb.Measurement))
                    size += len(frame.payload)
                elif frame.kind == FrameType.FINISH:
                    finish = message_of(frame, pb.FinishRecordingRequest)
                else:
                    self._note(frame)
                position = frame.end
            if batch:
                self._send(batch)
        except FlermError as error:
            if isinstance(error, NotFound) and self.started and self._restarts < 3:
                # The registry lost what it had (its database was restored or replaced): the file still has it all.
                log.warning("%s: %s; sending it again from the start", self.path.name, error)
                self._restarts += 1
                self.started = False
                self.progress = DeliveryProgress()
                self._reasons.clear()
                self._reader = SpoolReader(self.path)
                return True
            # The batch goes again as a whole: what came through of it is then a duplicate, which does no harm.
            self._reader.offset, self.progress = offset, before
            del self._reader.damage[damages:], self._reasons[reasons:]
            raise
        self._reader.offset = position
        if more:
            return True
        if finish is None and self.unfinished is not None:
            finish = pb.FinishRecordingRequest(status=self.unfinished)
        if finish is not None:
            self._finish(finish)
        return False

    def _note(self, frame: Frame) -> None:
        if frame.kind == FrameType.START and not self.started:
            request = message_of(frame, pb.StartRecordingRequest)
            request.sent_at.GetCurrentTime()
            answer = self._calls.unary("StartRecording", request)
            self._recording_id, self._attempt, self.started = (
                answer.recording_id,
                answer.attempt,
                True,
            )
        elif frame.kind == FrameType.GAP:
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
        if not self.started:
            raise DataLoss(f"{self.path.name} does not say which recording it holds")
        try:
            self._append(rows)
            self.progress.acknowledged += len(rows)
        except FlermError as error:
            if isinstance(error, NotFound) or not is_permanent(error):
                raise
            if len(rows) == 1:
                log.warning("%s: step %d refused: %s", self.path.name, rows[0].step, error)
                self._reasons.append(f"step {rows[0].step}: {error}")
                self.progress.refused += 1
                return
            # A request is stored whole or refused whole: halve it until what is at fault stands alone.
            middle = len(rows) // 2
            self._send(rows[:middle])
            self._send(rows[middle:])

    def _append(self, rows: list[pb.Measurement]) -> None:
        self._calls.unary(
            "Append",
            pb.AppendRequest(
                recording_id=self._recording_id, attempt=self._attempt, measurements=rows
            ),
            seconds=APPEND_SECONDS,
        )

    def _finish(self, request: pb.FinishRecordingRequest) -> None:
        if not self.started:
            raise DataLoss(f"{self.path.name} does not say which recording it holds")
        request.recording_id, request.attempt = self._recording_id, self._attempt
        self._calls.unary("FinishRecording", request)
        reasons = [*self._reasons, *map(str, self._reader.damage)]
        if reasons:
            self._set_aside("; ".join(reasons))
        elif not self.keep:
            remove(self.path)
        self.done = True

    def _set_aside(self, why: str) -> None:
        log.error("%s set aside: %s", self.path.name, why)
        self.quarantined = self.path if self.keep else quarantine(self.path, why)
        self.progress.problem = why
        self.done = True

    def _tell(self) -> None:
        if self.progress == self._told:
            return
        if not self.keep and self.progress.tell(self.path):
            self._told = replace(self.progress)


def is_abandoned_empty(path: Path, seconds: float = 60.0) -> bool:
    """Whether `path` holds nothing and nobody will write there: a process that died between making it and its first words.

    A living writer fills a file in the moment that it makes it, or takes it away again (a full disk).
    """
    try:
        idle = now().timestamp() - path.stat().st_mtime > seconds
        return idle and next(iter(SpoolReader(path)), None) is None
    except (FileNotFoundError, DataLoss, Refused):
        return False


def origin_at(path: Path) -> Origin | None:
    """Who wrote `path`; None when it does not say, or is gone."""
    try:
        for frame in SpoolReader(path):
            return origin_of(frame) if frame.kind == FrameType.OWNER else None
    except (FileNotFoundError, DataLoss, Refused):
        return None
    return None


def can_take_over(path: Path) -> tuple[bool, str]:
    """Whether somebody else than its owner may deliver `path`, and why not.

    Yes when the owner is known to be gone, or the attempt's end is in the file (a second delivery of it does no harm).
    """
    try:
        frames = iter(SpoolReader(path))
        first: Any = next(frames, None)
        if first is None:
            return False, f"{path.name} is empty"
        owner = origin_of(first).owner if first.kind == FrameType.OWNER else None
        if owner is not None and owner.here and not owner.alive:
            return True, ""
        if any(frame.kind == FrameType.FINISH for frame in frames):
            return True, ""
    except FileNotFoundError:
        return False, f"{path.name} is gone"
    except DataLoss:
        return True, ""  # nobody writes there; its delivery sets it aside with the reason
    except Refused as error:
        return False, str(error)
    if owner is None:
        return True, ""
    place = "is still running" if owner.here else "may still be running there"
    return False, f"{path.name} belongs to {owner}, which {place}"
