"""Writing a spool file. A measurement costs one `write` call of a few kilobytes."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from flerm_client.spool.frames import HEADER, SUFFIX, FrameType, encode
from flerm_client.spool.process_owner import ProcessOwner
from flerm_core._files import make_private_folder
from flerm_core.errors import InvalidInput
from flerm_core.records.checks import check_uuid
from flerm_core.records.recording import Attempt, Ending, Measurement, RecordingSpec, now
from flerm_proto.recording_messages import (
    attempt_to_proto,
    ending_to_proto,
    measurement_to_proto,
    spec_to_proto,
)
from flerm_proto.v1 import registry_pb2 as pb

log = logging.getLogger("flerm.spool")

# Errors that may go away while training goes on. Any other means that the folder is unusable.
_TRANSIENT = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EFBIG}


def start_request(spec: RecordingSpec, attempt: Attempt) -> pb.StartRecordingRequest:
    """The request that opens a recording's attempt.

    Raises `InvalidInput` when a configuration is not JSON-like.
    """
    try:
        return pb.StartRecordingRequest(spec=spec_to_proto(spec), attempt=attempt_to_proto(attempt))
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"the recording of family {spec.family!r} does not fit a message: {error}"
        ) from error


def file_name(recording_id: str, attempt_id: str) -> str:
    """The name of an attempt's spool file.

    Raises `InvalidInput` for ids that are no UUIDs, so that no id chooses a path.
    """
    check_uuid("recording_id", recording_id)
    check_uuid("attempt_id", attempt_id)
    return f"{recording_id}.{attempt_id}{SUFFIX}"


def _flerm_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flerm")
    except PackageNotFoundError:  # run from a source tree
        return "source"


class SpoolWriter:
    """Writes one attempt to a file of its own in `folder`. Not thread-safe.

    registry: the address of the registry that the file is for. The file holds it for `flerm sync`.

    After `start`, no method raises an error because of the disk. Rows that cannot be written are
    counted in `lost` and reported by one warning. A gap frame stands in the file for them as soon
    as writing works again.
    """

    def __init__(self, folder: Path, registry: str = "") -> None:
        self.folder = folder
        self.registry = registry
        self.path: Path | None = None
        self.rows = 0  # measurements in the file
        self.lost = 0  # measurements that could not be written
        self.finished = False
        self._fd = -1
        self._size = 0  # bytes of the file up to the last whole frame
        self._head = b""  # header, owner and start frame until they are written
        self._gap: tuple[int, int, int] | None = None  # rows, first step, last step
        self._reason = ""
        self._recording_id = ""

    def start(self, spec: RecordingSpec, attempt: Attempt) -> Path:
        """Creates the file and writes its first frames; its path.

        Raises `InvalidInput` when the folder cannot be written, or when the attempt has a file
        already. A full disk is no error: the first frames are written as soon as there is room.
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
            # Other users of the machine cannot read the measurements.
            make_private_folder(self.folder)
            self._fd = os.open(
                self.path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            raise InvalidInput(
                f"attempt {attempt.id} of recording {spec.id} is in the spool {self.folder} already"
            ) from None
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise InvalidInput(
                    f"the spool folder {self.folder} cannot be written ({error.strerror}): "
                    "set FLERM_SPOOL to one that can"
                ) from error
            self._warn(error)
            return self.path
        self._write(b"")
        return self.path

    @property
    def has_header(self) -> bool:
        """Whether the first frames are written, so that a reader can tell whose file it is."""
        return self._size > 0

    def append(self, row: Measurement) -> bool:
        """Writes one measurement; False when that failed."""
        if self._write(
            encode(FrameType.MEASUREMENT, measurement_to_proto(row).SerializeToString())
        ):
            self.rows += 1
            return True
        self.lost += 1
        lost, first, _ = self._gap or (0, row.step, row.step)
        self._gap = (lost + 1, first, row.step)
        return False

    def finish(self, ending: Ending) -> bool:
        """Writes the end of the attempt; False when that failed. Later calls do nothing.

        An end that does not say when it was is an end of now.
        """
        if self.finished:
            return True
        ending = replace(ending, finished_at=ending.finished_at or now())
        request = ending_to_proto(ending, recording_id=self._recording_id)
        self.finished = self._write(encode(FrameType.FINISH, request.SerializeToString()))
        return self.finished

    def close(self) -> None:
        """Closes the file. Readers see an attempt that is not finished as interrupted."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, frame: bytes) -> bool:
        """Writes `frame`, after the first frames and a gap frame if due. All or nothing."""
        if self.path is None:
            return False
        data = self._head + self._gap_frame() + frame
        try:
            if self._fd < 0:
                self._fd = os.open(
                    self.path,
                    os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW,
                    0o600,
                )
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            self._warn(error)
            if self._fd >= 0:
                # If the truncation fails, readers skip the half frame: they search for the next
                # marker.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                    if not self.has_header:
                        # Nobody could tell the owner of an empty file. The next write creates the
                        # file again.
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
                "the spool file %s cannot be written (%s): "
                "training goes on, measurements are lost until it can",
                self.path,
                error.strerror,
            )
        self._reason = error.strerror or str(error)
