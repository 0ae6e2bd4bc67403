"""The spool file: one recording's attempt, append-only, written by one process, readable while it grows.

    file    = magic "FLeRM spool\\n" (12 bytes), version (uint32), frames
    frame   = marker F1 46 4C 52, length (uint32), crc32 (uint32), kind (uint8), payload (length bytes)

All integers are little-endian; the CRC covers kind, length and payload. Frames come in the order of their writing:

    kind 1  owner        JSON: who writes (see `flerm_client.spool.process_owner`), the registry it is for, when, by which version
    kind 2  start        flerm.registry.v1.StartRecordingRequest
    kind 3  measurement  flerm.registry.v1.Measurement
    kind 4  gap          JSON: rows that could not be written (disk full): lost, first_step, last_step, reason
    kind 5  finish       flerm.registry.v1.FinishRecordingRequest (its attempt number is the sender's to fill in)

Kinds that a reader does not know are skipped: a later minor version may add some. The version counts changes that older
readers cannot live with.

A frame is believed when its CRC is right. Where it is not and a right one follows later, the bytes between are *damage*:
reported, skipped. Where none follows they are the *tail*, a write that is under way or was torn by a death: a reader stops
there and may look again. There is no fsync (the file outlives the process, not the host), no mmap and no lock: network file
systems have trouble with all three.
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


class FrameType(IntEnum):
    """What a frame holds."""

    OWNER = 1
    START = 2
    MEASUREMENT = 3
    GAP = 4
    FINISH = 5


@dataclass(frozen=True, slots=True)
class Frame:
    """One believed frame; `end` is the file offset behind it. `kind` may be a number that this version does not know."""

    kind: int
    payload: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """File offsets [start, end) that hold no believable frame though a good one follows."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.end - self.start} damaged bytes at {self.start}"


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_COVERED.pack(kind, len(payload))))


def encode(kind: FrameType, payload: bytes) -> bytes:
    """A frame's bytes."""
    return _FRAME.pack(MARKER, len(payload), _checksum(kind, payload), kind) + payload


def _decode(data: bytes, position: int) -> tuple[int, bytes] | None:
    """Kind and payload of the frame at `position`; None when there is no whole, right one."""
    if position + OVERHEAD > len(data):
        return None
    marker, length, checksum, kind = _FRAME.unpack_from(data, position)
    start = position + OVERHEAD
    if marker != MARKER or start + length > len(data):
        return None
    payload = data[start : start + length]
    return (kind, payload) if _checksum(kind, payload) == checksum else None


def _resume(data: bytes, position: int) -> int | None:
    """Where the next believable frame begins behind `position`; None when there is none."""
    found = data.find(MARKER, position + 1)
    while found >= 0:
        if _decode(data, found) is not None:
            return found
        found = data.find(MARKER, found + 1)
    return None


def parse(data: bytes, offset: int) -> tuple[list[Frame | Damage], int]:
    """The frames and damages in `data`, which stands at `offset` of the file, and the offset where the tail begins."""
    found: list[Frame | Damage] = []
    position = 0
    while True:
        decoded = _decode(data, position)
        if decoded is not None:
            position += OVERHEAD + len(decoded[1])
            found.append(Frame(*decoded, end=offset + position))
            continue
        resumed = _resume(data, position)
        if resumed is None:
            return found, offset + position
        found.append(Damage(offset + position, offset + resumed))
        position = resumed
