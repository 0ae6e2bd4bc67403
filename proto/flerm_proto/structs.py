"""The conversion of JSON-like mappings to Structs and back.

A page of a listing has up to a thousand recordings with the same few configurations. The conversion
of a Struct takes ten times as long as the rest of a recording's message, so results are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.struct_pb2 import Struct
from google.protobuf.struct_pb2 import Value as StructValue

Key = TypeVar("Key", str, bytes)
Source = TypeVar("Source")
Kept = TypeVar("Kept", Struct, dict[str, Any])

MOST_KEPT = 512  # results that are kept for each direction
MOST_LENGTH = 4096  # characters or bytes of the longest key whose result is kept


class _Conversions(Generic[Key, Kept]):
    """Results of conversions by their input. At `MOST_KEPT` results all are dropped.

    Any thread may call `get`.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, Kept] = {}

    def get(self, key: Key, convert: Callable[[Source], Kept], source: Source) -> Kept:
        """The kept result for `key`, or else what `convert` makes of `source`."""
        found = self._kept.get(key)
        if found is None:
            found = convert(source)
            if len(key) <= MOST_LENGTH:
                if len(self._kept) >= MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = found
        return found


_messages: _Conversions[str, Struct] = _Conversions()
_mappings: _Conversions[bytes, dict[str, Any]] = _Conversions()


def fill_structs(messages: Sequence[Struct], mappings: Sequence[Mapping[str, Any]]) -> None:
    """Sets empty Structs to JSON-like mappings.

    Raises `ValueError` where a value is not JSON-like.
    """
    # Recordings that a database gives share the mappings of equal settings, so that most need not
    # be looked at again.
    made: dict[int, Struct] = {}
    for message, values in zip(messages, mappings, strict=True):
        found = made.get(id(values))
        if found is None:
            # Kept by the `repr`: 1, 1.0 and True are equal as keys, and differ in their `repr`.
            found = made[id(values)] = _messages.get(repr(values), _struct, values)
        message.CopyFrom(found)


def _struct(values: Mapping[str, Any]) -> Struct:
    made = Struct()
    made.update(dict(values))
    return made


def structs_from_proto(messages: Sequence[Struct]) -> list[dict[str, Any]]:
    """The mappings that Structs hold. The caller may change them.

    A Struct holds floats only. Whole numbers below 2⁵³ become int. Raises `ValueError` for a number
    that is not finite.
    """
    return [_copied(_mappings.get(each.SerializeToString(), _mapping, each)) for each in messages]


def _copied(value: Any) -> Any:
    """A deep copy of a JSON-like value. `copy.deepcopy` takes five times as long."""
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
