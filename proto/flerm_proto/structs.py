"""JSON-like mappings as Structs and back.

A page of a listing has a thousand recordings with the same few configurations. A Struct takes ten
times as long as the rest of a recording's message, so the last conversions are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from google.protobuf.struct_pb2 import Struct
from google.protobuf.struct_pb2 import Value as StructValue

Key = TypeVar("Key", str, bytes)
Kept = TypeVar("Kept", Struct, dict[str, Any])

MOST_KEPT, MOST_LENGTH = 512, 4096  # conversions of each direction; characters or bytes of each


class _Conversions(Generic[Key, Kept]):
    """Results by what they were made of; the oldest make room. Callers may be on any thread."""

    def __init__(self) -> None:
        self._kept: dict[Key, Kept] = {}

    def get(self, key: Key, convert: Callable[[], Kept]) -> Kept:
        """The result for `key`, from `convert` at the first time."""
        found = self._kept.get(key)
        if found is None:
            found = convert()
            if len(key) <= MOST_LENGTH:
                if len(self._kept) >= MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = found
        return found


_messages: _Conversions[str, Struct] = _Conversions()
_mappings: _Conversions[bytes, dict[str, Any]] = _Conversions()


def struct_to_proto(values: Mapping[str, Any]) -> Struct:
    """A JSON-like mapping as a Struct, which is to be copied into a message and not changed.

    Raises `ValueError` where a value is not JSON-like.
    """

    def message() -> Struct:
        made = Struct()
        made.update(dict(values))
        return made

    # By `repr`, which tells 1, 1.0 and True apart.
    return _messages.get(repr(values), message)


def struct_from_proto(message: Struct) -> dict[str, Any]:
    """The mapping of a Struct. Whole numbers come back as int: a Struct has floats only.

    Raises `ValueError` for a number that is not finite.
    """
    found: dict[str, Any] = _copied(
        _mappings.get(message.SerializeToString(), lambda: _mapping(message))
    )
    return found


def _copied(value: Any) -> Any:
    """A copy of a JSON-like value that shares nothing which its owner could change.

    `copy.deepcopy` takes five times as long.
    """
    if type(value) is dict:
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if type(value) is list else value


def _mapping(message: Struct) -> dict[str, Any]:
    return {key: _json_value(value) for key, value in message.fields.items()}


def _json_value(message: StructValue) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "number_value":
        number = message.number_value
        if not math.isfinite(number):
            raise ValueError(f"{number} is not a number of JSON")
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if kind == "list_value":
        return [_json_value(each) for each in message.list_value.values]
    if kind == "struct_value":
        return _mapping(message.struct_value)
    return None if kind in (None, "null_value") else getattr(message, kind)
