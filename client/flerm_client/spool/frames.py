"""The spool file format. A file holds one attempt of a recording.

One process writes the file and only appends to it. The file can be read while it grows.

    file    = magic "FLeRM spool\\n" (12 bytes), version (uint32), frames
    frame   = marker F1 46 4C 52, length (uint32), crc32 (uint32), type (uint8), payload

All integers are little-endian. `length` counts the bytes of the payload. The CRC covers type,
length and payload. Frames stand in the order in which they were written:

    type 1  owner        JSON: the process that writes (see `flerm_client.spool.process_owner`), the
                         address of the registry that the file is for, the time, the flerm version
    type 2  start        flerm.registry.v1.StartRecordingRequest
    type 3  measurement  flerm.registry.v1.Measurement
    type 4  gap          JSON: rows that could not be written (disk full): lost, first_step,
                         last_step, reason
    type 5  finish       flerm.registry.v1.FinishRecordingRequest; the sender fills in its attempt
                         number

A reader skips frames of a type that it does not know: a later minor version may add types. The
version number changes only when older readers can no longer read the file.

A frame is valid when its CRC matches. Bytes that are no valid frame are *damage* when a valid frame
follows them: a reader reports and skips them. When no valid frame follows they are the *tail*, a
write that is in progress or was cut off when its process died: a reader stops there, and may look
again later.

The writer does not fsync, so the file outlives the process but not the host. There is no mmap and
no file lock. Network file systems have trouble with all three.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"FLeRM spool\n"
VERSION = 1
MARKER = b"\xf1FLR"
HEADER = MAGIC + struct.pack("<I", VERSION)
SUFFIX = ".spool"

_FRAME = struct.Struct("<4sIIB")
_COVERED = struct.Struct("<BI")
OVERHEAD = _FRAME.size
"""Bytes of a frame beside its payload."""


class FrameType(IntEnum):
    """What a frame holds."""

    OWNER = 1
    START = 2
    MEASUREMENT = 3
    GAP = 4
    FINISH = 5


@dataclass(frozen=True, slots=True)
class Frame:
    """One valid frame.

    end: the file offset after the frame.
    type: a `FrameType`, or a number unknown here.
    """

    type: int
    payload: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """File offsets [start, end) that hold no valid frame although a valid frame follows."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.end - self.start} damaged bytes at {self.start}"


def encode(frame_type: FrameType, payload: bytes) -> bytes:
    """The bytes of a frame."""
    return _FRAME.pack(MARKER, len(payload), _checksum(frame_type, payload), frame_type) + payload


def parse(data: bytes, offset: int) -> tuple[list[Frame | Damage], int]:
    """The frames and damages in `data`, and the file offset of the tail.

    offset: the file offset at which `data` begins.
    """
    found: list[Frame | Damage] = []
    position = 0
    while True:
        decoded = _decode(data, position)
        if decoded is not None:
            position += OVERHEAD + len(decoded[1])
            found.append(Frame(*decoded, end=offset + position))
            continue
        next_frame = _find_frame(data, position + 1)
        if next_frame is None:
            return found, offset + position
        found.append(Damage(offset + position, offset + next_frame))
        position = next_frame


def _checksum(frame_type: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_COVERED.pack(frame_type, len(payload))))


def _decode(data: bytes, position: int) -> tuple[int, bytes] | None:
    """Type and payload of the frame at `position`; None without a whole and valid frame there."""
    if position + OVERHEAD > len(data):
        return None
    marker, length, checksum, frame_type = _FRAME.unpack_from(data, position)
    start = position + OVERHEAD
    if marker != MARKER or start + length > len(data):
        return None
    payload = data[start : start + length]
    return (frame_type, payload) if _checksum(frame_type, payload) == checksum else None


def _find_frame(data: bytes, position: int) -> int | None:
    """The start of the first valid frame at or after `position`; None without one."""
    found = data.find(MARKER, position)
    while found >= 0:
        if _decode(data, found) is not None:
            return found
        found = data.find(MARKER, found + 1)
    return None
