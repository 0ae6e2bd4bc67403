"""Writing a spool file. A measurement costs one `write` of a few kilobytes; nothing waits, and a full disk stops nobody."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from pathlib import Path

from flerm_client.spool.frames import HEADER, SUFFIX, FrameType, encode
from flerm_client.spool.process_owner import ProcessOwner
from flerm_core.errors import InvalidInput
from flerm_core.records.recording import Attempt, Ending, Measurement, RecordingSpec, now
from flerm_proto.recording_messages import ending_to, measurement_to, spec_to, timestamp_to
from flerm_proto.v1 import registry_pb2 as pb

log = logging.getLogger("flerm.spool")

# Failures that may pass while training goes on; any other means that the folder cannot be used at all.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EFBIG}


def start_request(spec: RecordingSpec, attempt: Attempt) -> pb.StartRecordingRequest:
    """The request that opens a recording's attempt. Raises `InvalidInput` where a configuration is not JSON-like."""
    try:
        return pb.StartRecordingRequest(
            spec=spec_to(spec),
            attempt_id=attempt.id,
            resume_at=attempt.resume_at,
            started_at=timestamp_to(attempt.started_at),
            after=attempt.after,
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"the recording of family {spec.family!r} does not fit a message: {error}"
        ) from error


def file_name(recording_id: str, attempt_id: str) -> str:
    """What an attempt's spool file is called."""
    return f"{recording_id}.{attempt_id}{SUFFIX}"


def _flerm_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flerm")
    except PackageNotFoundError:  # run from a source tree
        return "source"


class SpoolWriter:
    """Appends one attempt to a file of its own in `folder`. Not thread-safe; one per attempt.

    `registry` is the address that the file is for, remembered in it for `flerm sync`. After `start`, no method raises because
    of the disk: rows that cannot be written are counted in `lost`, warned of once, and marked as a gap when it works again.
    """

    def __init__(self, folder: Path, registry: str = "") -> None:
        self.folder = folder
        self.registry = registry
        self.path: Path | None = None
        self.rows = 0  # measurements in the file
        self.lost = 0  # measurements that could not be written
        self.finished = False
        self._fd = -1
        self._size = 0  # of the file up to the last whole frame
        self._head = b""  # header, owner and start, until they are in the file
        self._gap: tuple[int, int, int] | None = None  # rows, first step, last step
        self._reason = ""
        self._recording_id = ""

    def start(self, spec: RecordingSpec, attempt: Attempt) -> Path:
        """Creates the file and writes who and what it is; its path.

        Raises `InvalidInput` when the folder cannot be written or the attempt is there already. A full disk is no error: the
        file begins when there is room.
        """
        request = start_request(spec, attempt)
        origin = {
            "owner": ProcessOwner.of(os.getpid()).to_json(),
            "registry": self.registry,
            "created_at": now().isoformat(),
            "flerm": _flerm_version(),
        }
        self._head = (
            HEADER
            + encode(FrameType.OWNER, json.dumps(origin).encode())
            + encode(FrameType.START, request.SerializeToString(deterministic=True))
        )
        self._recording_id = spec.id
        self.path = self.folder / file_name(spec.id, attempt.id)
        try:
            # Others on the machine have no business in a run's measurements.
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd = os.open(
                self.path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            raise InvalidInput(
                f"attempt {attempt.id} of recording {spec.id} is in the spool {self.folder} already"
            ) from None
        except OSError as error:
            if error.errno not in _PASSING:
                raise InvalidInput(
                    f"the spool folder {self.folder} cannot be written ({error.strerror}): set FLERM_SPOOL to one that can"
                ) from error
            self._warn(error)
            return self.path
        self._write(b"")
        return self.path

    @property
    def begun(self) -> bool:
        """Whether the file is there and says whose it is."""
        return self._size > 0

    def append(self, row: Measurement) -> bool:
        """Adds one measurement; False when it could not be written."""
        return self._append(
            FrameType.MEASUREMENT, measurement_to(row).SerializeToString(), row.step
        )

    def finish(self, ending: Ending) -> bool:
        """Marks the attempt's end; False when that could not be written. Once only: later calls do nothing."""
        if self.finished:
            return True
        request = ending_to(self._recording_id, 0, ending)
        self.finished = self._write(encode(FrameType.FINISH, request.SerializeToString()))
        return self.finished

    def close(self) -> None:
        """Closes the file. Without `finish` before, readers take the attempt for interrupted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, kind: FrameType, payload: bytes, step: int) -> bool:
        if self._write(encode(kind, payload)):
            self.rows += 1
            return True
        self.lost += 1
        lost, first, _ = self._gap or (0, step, step)
        self._gap = (lost + 1, first, step)
        return False

    def _write(self, frame: bytes) -> bool:
        """Writes what is owed (the file's head, a gap) and `frame`, all or nothing."""
        if self.path is None:
            return False
        data = self._head + self._gap_frame() + frame
        try:
            if self._fd < 0:
                self._fd = os.open(
                    self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600
                )
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            self._warn(error)
            if self._fd >= 0:
                # A half frame left behind would only cost readers a search; they find the next one by its marker.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                    if not self.begun:
                        # A file that says nothing of its owner would be nobody's: the next write makes it anew.
                        self.close()
                        self.path.unlink()
            return False
        self._size += len(data)
        self._head, self._gap = b"", None
        return True

    def _gap_frame(self) -> bytes:
        if self._gap is None:
            return b""
        lost, first, last = self._gap
        content = {"lost": lost, "first_step": first, "last_step": last, "reason": self._reason}
        return encode(FrameType.GAP, json.dumps(content).encode())

    def _warn(self, error: OSError) -> None:
        if not self._reason:
            log.warning(
                "the spool file %s cannot be written (%s): training goes on, measurements are lost until it can",
                self.path,
                error.strerror,
            )
        self._reason = error.strerror or str(error)
