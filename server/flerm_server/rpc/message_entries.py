"""How many entries a message has, counted on its bytes.

A parsed entry takes up to a hundred times its bytes: an empty message within a message is two bytes
on the wire. A message is therefore counted before it is parsed.
"""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def count_entries(data: bytes, message: Descriptor, most: int) -> int:
    """The texts, byte strings and messages at all levels of `data`, or `most` + 1 for more.

    message: the type that `data` is of.

    Bytes that are no such message are counted as far as they can be read; the parser says what is
    wrong with them.
    """
    found = 0
    parts = [(0, len(data), message)]
    try:
        while parts:
            at, end, kind = parts.pop()
            inner = _messages(kind)
            while at < end:
                key, at = _varint(data, at)
                wire = key & 7
                if wire == BYTES:
                    size, at = _varint(data, at)
                    found += 1
                    if found > most:
                        return found
                    if key >> 3 in inner:
                        parts.append((at, min(at + size, end), inner[key >> 3]))
                    at += size
                elif wire == VARINT:
                    at = _varint(data, at)[1]
                else:
                    at += {FIXED64: 8, FIXED32: 4}.get(wire, 0)
    except IndexError:
        return found
    return found


@cache
def _messages(kind: Descriptor) -> dict[int, Descriptor]:
    """The fields of `kind` that are messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next field begins."""
    byte = data[at]
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise IndexError(at)
    return value, at + 1
