"""A dataclass of the core as a message and back, field by field, by equal names.

A field is written once in the dataclass and once in `registry.proto`. Its conversion follows from
the two declarations, so that there is no third place that could forget the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from flerm_proto.structs import MOST_KEPT, struct_from_proto, struct_to_proto
from flerm_proto.v1 import registry_pb2 as pb

Value = TypeVar("Value")
Wire = TypeVar("Wire", bound=Message)

_EPOCH = datetime.fromtimestamp(0, UTC)


class Codec(NamedTuple):
    """How the values of one type travel.

    to_proto: a value to what a message's constructor takes.
    from_proto: the content of the message's field to a value.
    absent: the value of a field that is unset, for a dataclass field that cannot be None.
    """

    to_proto: Callable[[Any], Any]
    from_proto: Callable[[Any], Any]
    absent: Any = None


def timestamp_to_proto(moment: datetime) -> Timestamp:
    """A moment as a message."""
    message = Timestamp()
    set_timestamp(message, moment)
    return message


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Sets `message` to `moment`.

    `Timestamp.FromDatetime` takes five times as long, and this runs in the training thread.
    """
    since = moment - _EPOCH
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1000


def timestamp_from_proto(message: Timestamp) -> datetime:
    """A moment, in UTC, from a message. Raises `ValueError` for one beyond the calendar."""
    if not 0 <= message.nanos < 1_000_000_000:
        raise ValueError(f"{message.nanos} nanoseconds: 0 to 999,999,999 are allowed")
    try:
        # `Timestamp.ToDatetime` takes five times as long.
        return _EPOCH + timedelta(0, message.seconds, message.nanos // 1000)
    except OverflowError as error:
        raise ValueError(f"{message.seconds} s after 1970 is beyond the calendar") from error


def shape_to_proto(shape: Sequence[int]) -> pb.Shape:
    """A tensor's shape as a message."""
    return pb.Shape(dims=shape)


def shape_from_proto(message: pb.Shape) -> tuple[int, ...]:
    """A tensor's shape from a message."""
    return tuple(message.dims)


_CODECS: dict[str, Codec] = {
    Timestamp.DESCRIPTOR.full_name: Codec(timestamp_to_proto, timestamp_from_proto, _EPOCH),
    Struct.DESCRIPTOR.full_name: Codec(struct_to_proto, struct_from_proto),
    pb.Shape.DESCRIPTOR.full_name: Codec(shape_to_proto, shape_from_proto),
}


class MessageCodec(Generic[Value, Wire]):
    """Converts a dataclass to a message of the wire contract and back. Total and lossless."""

    def __init__(
        self,
        value_type: type[Value],
        message_type: type[Wire],
        *,
        parts: Sequence[MessageCodec[Any, Any]] = (),
        message_only: Sequence[str] = (),
        value_only: Sequence[str] = (),
        empty_is_default: bool = False,
        repeats: bool = False,
    ) -> None:
        """Pairs the fields of both. The work by declaration is done here, once for each class.

        value_type: the dataclass.
        message_type: its message.
        parts: the codecs of dataclasses that `value_type` has as fields.
        message_only: fields of the message that are no fields of the dataclass.
        value_only: fields of the dataclass that this message does not carry.
        empty_is_default: whether an empty text in the message stands for the dataclass's default,
            as it does in questions.
        repeats: whether few different values come often, as a part of other messages. The last
            conversions are then kept, for which the dataclass has to be frozen and hashable.

        Raises `TypeError` where a field of one has no field of that name in the other, and where
        a field that may be None has no `optional` in the message.
        """
        self.value_type, self.message_type = value_type, message_type
        self._parts = {each.message_type.DESCRIPTOR.full_name: each for each in parts}
        declared = {each.name: each for each in dataclasses.fields(value_type)}  # type: ignore[arg-type]
        wire = message_type.DESCRIPTOR.fields_by_name
        unpaired = (set(declared) ^ set(wire)) - set(message_only) - set(value_only)
        if unpaired:
            raise TypeError(
                f"{value_type.__name__} and {message_type.__name__} differ in {sorted(unpaired)}"
            )
        hints = get_type_hints(value_type)
        # The fields that need a conversion. The others are read together, by one call.
        self._to: dict[str, Callable[[Any], Any]] = {}
        self._from: dict[str, Callable[[Any], Any]] = {}
        for name in declared.keys() - set(value_only):
            optional = type(None) in get_args(hints[name])
            default = declared[name].default if empty_is_default else ""
            self._pair(wire[name], optional, default)
        carried = declared.keys() - set(value_only)
        self._to_plain = _reader_of(sorted(carried - self._to.keys()))
        self._from_plain = _reader_of(sorted(carried - self._from.keys()))
        self.part = Codec(self.to_fields, self.from_proto)
        if repeats:
            known = lru_cache(MOST_KEPT)(self._from_bytes)
            self.part = Codec(
                lru_cache(MOST_KEPT)(self.to_proto),
                lambda message: known(message.SerializeToString()),
            )

    def to_proto(self, value: Value, **message_only: Any) -> Wire:
        """The message of `value`; `message_only` are the fields that `value` does not have."""
        return self.message_type(**self.to_fields(value), **message_only)

    def to_fields(self, value: Value) -> dict[str, Any]:
        """The fields of the message of `value`, for the constructor of a message around this one.

        A message that is given to another's constructor would be copied.
        """
        fields = self._to_plain(value)
        for name, read in self._to.items():
            fields[name] = read(value)
        return fields

    def from_proto(self, message: Wire, **value_only: Any) -> Value:
        """The value of `message`; `value_only` are the fields that `message` does not have."""
        fields = self._from_plain(message)
        for name, read in self._from.items():
            fields[name] = read(message)
        return self.value_type(**fields, **value_only)

    def _from_bytes(self, data: bytes) -> Value:
        return self.from_proto(self.message_type.FromString(data))

    def _pair(self, field: Any, optional: bool, default: Any) -> None:
        """Notes how the field travels.

        default: what an empty text stands for, if not empty.
        """
        name, get = field.name, attrgetter(field.name)
        if optional and not field.has_presence:
            raise TypeError(f"{field.full_name} is not `optional`, and {name} may be None")
        codec = None if field.message_type is None else self._codec(field.message_type.full_name)
        if codec is None or _is_map(field):
            if _is_map(field):
                self._from[name] = lambda message: dict(get(message))
            elif _is_repeated(field):
                self._from[name] = lambda message: tuple(get(message))
            elif field.has_presence:
                self._from[name] = lambda message: get(message) if message.HasField(name) else None
            elif isinstance(default, str) and default:
                self._from[name] = lambda message: get(message) or default
            return
        write, read, absent = codec.to_proto, codec.from_proto, codec.absent
        if _is_repeated(field):
            self._to[name] = lambda value: [write(each) for each in get(value)]
            self._from[name] = lambda message: tuple([read(each) for each in get(message)])
        elif optional:
            self._to[name] = lambda value: None if (part := get(value)) is None else write(part)
            self._from[name] = lambda message: (
                read(get(message)) if message.HasField(name) else None
            )
        else:
            empty = read(get(self.message_type())) if absent is None else absent
            # An empty part, such as the parameters of a recording in a listing, does not travel.
            unset = empty if absent is None else None
            self._to[name] = lambda value: None if (part := get(value)) == unset else write(part)
            mutable = isinstance(empty, dict)  # each value has one of its own
            self._from[name] = lambda message: (
                read(get(message)) if mutable or message.HasField(name) else empty
            )

    def _codec(self, message_name: str) -> Codec | None:
        part = self._parts.get(message_name)
        return _CODECS.get(message_name) if part is None else part.part


def _reader_of(names: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """A function that reads these fields of a value or message."""
    if len(names) < 2:  # `attrgetter` gives no tuple then
        return lambda value: {name: getattr(value, name) for name in names}
    read = attrgetter(*names)
    return lambda value: dict(zip(names, read(value), strict=True))


def _is_repeated(field: Any) -> bool:
    # protobuf 4 has no `is_repeated`, and later versions warn of `label`.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def _is_map(field: Any) -> bool:
    message = field.message_type
    return message is not None and bool(message.GetOptions().map_entry)
