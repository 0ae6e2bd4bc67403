"""Reading spool files: frame by frame while they grow, or a whole file as core values."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from flerm_client.spool.frames import HEADER, MAGIC, VERSION, Damage, Frame, FrameType, parse
from flerm_client.spool.process_owner import ProcessOwner
from flerm_core.errors import DataLoss, Refused
from flerm_core.records.measurement_validation import validate_batch
from flerm_core.records.recording import Attempt, Ending, Measurement, RecordingSpec
from flerm_core.records.validation import (
    MAX_ROWS,
    validate_attempt,
    validate_ending,
    validate_spec,
)
from flerm_proto.recording_messages import (
    attempt_from_proto,
    batch_from_proto,
    ending_from_proto,
    measurement_from_proto,
    spec_from_proto,
)
from flerm_proto.v1 import registry_pb2 as pb

log = logging.getLogger("flerm.spool")

_BLOCK = 4 << 20


class SpoolReader:
    """Iterates over the valid frames of a spool file.

    offset: where to begin, 0 or the `end` of a frame that was read before.

    Iteration ends at the last whole frame. Iterate again to read what was written since. Damaged
    bytes between frames are skipped and listed in `damage`. Raises `DataLoss` when the file is no
    spool file, and `Refused` when its version is later. A file with an empty or incomplete header
    has no frames yet.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.damage: list[Damage] = []

    def __iter__(self) -> Iterator[Frame]:
        with self.path.open("rb") as file:
            if self.offset < len(HEADER):
                head = file.read(len(HEADER))
                if head[: len(MAGIC)] != MAGIC[: len(head)]:
                    raise DataLoss(f"{self.path} is not a spool file")
                if len(head) < len(HEADER):
                    return
                found = int.from_bytes(head[len(MAGIC) :], "little")
                if found != VERSION:
                    raise Refused(
                        f"{self.path} is of spool version {found}, this flerm reads version "
                        f"{VERSION}: use its writer's"
                    )
                self.offset = len(HEADER)
            size = _BLOCK
            while True:
                file.seek(self.offset)
                data = file.read(size)
                items, end = parse(data, self.offset)
                if end == self.offset:
                    if len(data) < size:
                        return
                    size *= 2  # a frame or damaged bytes are longer than the block
                    continue
                for item in items:
                    if isinstance(item, Damage):
                        self.damage.append(item)
                        log.warning("%s: %s skipped", self.path, item)
                    else:
                        self.offset = item.end
                        yield item
                self.offset = end
                size = _BLOCK

    @property
    def tail(self) -> int:
        """The number of bytes after the last whole frame: a write in progress, or one cut off."""
        return max(self.path.stat().st_size - self.offset, 0)


@dataclass(frozen=True, slots=True)
class Gap:
    """Measurements that could not be written: how many, their range of steps, and why."""

    lost: int
    first_step: int
    last_step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that wrote a file, the address of the registry it is for, and when it began."""

    owner: ProcessOwner
    registry: str
    created_at: datetime


@dataclass(slots=True)
class SpoolContent:
    """The content of a spool file.

    tail: the number of bytes after the last whole frame.
    """

    path: Path
    origin: Origin
    spec: RecordingSpec
    attempt: Attempt
    rows: list[Measurement] = field(default_factory=list)
    ending: Ending | None = None
    gaps: list[Gap] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    tail: int = 0

    @property
    def status(self) -> str:
        """The ending's status; without one `running` while the owner runs, else `interrupted`."""
        if self.ending is not None:
            return self.ending.status
        return "running" if self.origin.owner.alive else "interrupted"


def message_of(
    frame: Frame,
    message_type: type[pb.StartRecordingRequest | pb.Measurement | pb.FinishRecordingRequest],
) -> Any:
    """The payload as a message of `message_type`.

    Raises `DataLoss` when it is none. The CRC was right, so the writer was at fault.
    """
    try:
        return message_type.FromString(frame.payload)
    except DecodeError as error:
        raise DataLoss(
            f"the frame that ends at {frame.end} is no {message_type.__name__}: {error}"
        ) from error


def origin_of(frame: Frame) -> Origin:
    """The content of an owner frame. Raises `DataLoss` when it is not readable."""
    try:
        content = json.loads(frame.payload)
        return Origin(
            ProcessOwner.from_json(content["owner"]),
            str(content.get("registry", "")),
            datetime.fromisoformat(content["created_at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(
            f"the owner frame that ends at {frame.end} does not say who writes"
        ) from error


def read_origin(path: Path) -> Origin | None:
    """Who wrote the file `path`; None when the file does not say, or cannot be read."""
    try:
        for frame in SpoolReader(path):
            return origin_of(frame) if frame.type == FrameType.OWNER else None
    except (OSError, DataLoss, Refused):
        return None
    return None


def gap_of(frame: Frame) -> Gap:
    """The content of a gap frame. Raises `DataLoss` when it is not readable."""
    try:
        return Gap(**json.loads(frame.payload))
    except (ValueError, TypeError) as error:
        raise DataLoss(
            f"the gap frame that ends at {frame.end} does not say what is missing"
        ) from error


def read(path: Path, *, rows: bool = True) -> SpoolContent:
    """The whole file as core values, which are checked as a registry server checks them.

    `rows=False`: measurements are read without their vectors, which is faster.

    An incomplete frame at the end is left out, with a warning unless the owner may still be
    writing. So is a measurement that no registry takes. Raises `DataLoss` when the file does not
    say which recording it holds, or holds a recording that no registry takes.
    """
    try:
        return _read(path, rows)
    except ValueError as error:  # of a conversion, or `InvalidInput`
        raise DataLoss(f"{path} holds no recording that a registry takes: {error}") from error


def _read(path: Path, rows: bool) -> SpoolContent:
    reader = SpoolReader(path)
    origin: Origin | None = None
    content: SpoolContent | None = None
    messages: list[pb.Measurement] = []
    for frame in reader:
        if frame.type == FrameType.OWNER:
            origin = origin_of(frame)
        elif frame.type == FrameType.START and content is None:
            request = message_of(frame, pb.StartRecordingRequest)
            spec, attempt = spec_from_proto(request.spec), attempt_from_proto(request.attempt)
            validate_spec(spec)
            validate_attempt(attempt)
            unknown = Origin(ProcessOwner("", "", 0, ""), "", attempt.started_at)
            content = SpoolContent(path, origin or unknown, spec, attempt)
        elif content is None:
            continue
        elif frame.type == FrameType.MEASUREMENT:
            messages.append(message_of(frame, pb.Measurement))
        elif frame.type == FrameType.GAP:
            content.gaps.append(gap_of(frame))
        elif frame.type == FrameType.FINISH:
            content.ending = ending_from_proto(message_of(frame, pb.FinishRecordingRequest))
            validate_ending(content.ending)
    if content is None:
        raise DataLoss(f"{path} does not say which recording it holds")
    content.rows = _measurements(path, messages, len(content.spec.parameters), rows)
    content.damage, content.tail = reader.damage, reader.tail
    if content.tail and content.status != "running":
        log.warning("%s: %d bytes of an unfinished write at the end dropped", path, content.tail)
    return content


def _measurements(
    path: Path, messages: list[pb.Measurement], columns: int, vectors: bool
) -> list[Measurement]:
    """Those of `messages` that a registry takes, without their vectors unless `vectors`.

    columns: the number of parameters.
    """
    found = []
    for start in range(0, len(messages), MAX_ROWS):
        part = messages[start : start + MAX_ROWS]
        try:
            found += _converted(part, columns, vectors)
        except (DataLoss, ValueError):  # at least one of them is wrong
            for message in part:
                try:
                    found += _converted([message], columns, vectors)
                except (DataLoss, ValueError) as error:
                    log.warning("%s: step %d is left out: %s", path, message.step, error)
    return found


def _converted(messages: list[pb.Measurement], columns: int, vectors: bool) -> list[Measurement]:
    validate_batch(batch_from_proto(messages), columns)
    if not vectors:
        for message in messages:
            message.ClearField("fslr")
            message.ClearField("vectors")
    return [measurement_from_proto(message) for message in messages]
