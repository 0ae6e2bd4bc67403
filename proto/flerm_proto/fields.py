"""The conversion of the core's dataclasses to messages and back, by equal field names.

A field is written once in the dataclass and once in `registry.proto`. The conversion follows from
these two declarations. No list of fields is written by hand, so none can lack a field.
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
    """The conversion of the values of one type.

    to_proto: converts a value to what a message's constructor takes.
    from_proto: converts the content of the message's field to a value.
    absent: the value for a message field that is unset, where the dataclass field cannot be None.
        None: the value that `from_proto` makes of an empty message.
    """

    to_proto: Callable[[Any], Any]
    from_proto: Callable[[Any], Any]
    absent: Any = None


def timestamp_to_fields(moment: datetime) -> dict[str, int]:
    """A time, which must have a time zone, as the fields of a Timestamp. Microseconds are kept.

    A message's constructor takes the fields as they are. A finished Timestamp it would copy.
    """
    since = moment - _EPOCH
    return {"seconds": since.days * 86_400 + since.seconds, "nanos": since.microseconds * 1000}


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Sets `message` to `moment`, which must have a time zone.

    The training thread calls this function, and `Timestamp.FromDatetime` takes five times as long.
    """
    since = moment - _EPOCH
    message.seconds = since.days * 86_400 + since.seconds
    message.nanos = since.microseconds * 1000


def timestamp_from_proto(message: Timestamp) -> datetime:
    """The time in UTC that a message holds, to the microsecond.

    Raises `ValueError` for a time that `datetime` cannot hold, and for nanoseconds out of range.
    """
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
    Timestamp.DESCRIPTOR.full_name: Codec(timestamp_to_fields, timestamp_from_proto, _EPOCH),
    Struct.DESCRIPTOR.full_name: Codec(struct_to_proto, struct_from_proto),
    pb.Shape.DESCRIPTOR.full_name: Codec(shape_to_proto, shape_from_proto),
}


class MessageCodec(Generic[Value, Wire]):
    """Converts a dataclass to a message of the wire contract and back.

    Converting a value to a message and back gives an equal value, but for the fields in
    `value_only`.

    part: the conversion of this dataclass where it is a field of another.
    """

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
        """Decides for each pair of fields how it is converted. This is done once for each class.

        value_type: the dataclass.
        message_type: the message.
        parts: the codecs of the dataclasses that are fields of `value_type`.
        message_only: names of fields that only the message has.
        value_only: names of fields that only the dataclass has.
        empty_is_default: whether an empty text in the message stands for the field's default in the
            dataclass, as in the messages of queries.
        repeats: whether the same few values come again and again as parts of other messages. Their
            last conversions are then kept. The dataclass must be frozen and hashable for this.

        Raises `TypeError` where a field lacks its partner of the same name, and where a field that
        may be None is not `optional` in the message.
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
        """The message of `value`. `message_only` gives the fields that only the message has."""
        return self.message_type(**self.to_fields(value), **message_only)

    def to_fields(self, value: Value) -> dict[str, Any]:
        """The fields of the message of `value`, by name.

        The constructor of an enclosing message takes them as they are. A finished message it would
        copy.
        """
        fields = self._to_plain(value)
        for name, read in self._to.items():
            fields[name] = read(value)
        return fields

    def from_proto(self, message: Wire, **value_only: Any) -> Value:
        """The value of `message`. `value_only` gives the fields that only the dataclass has.

        Raises `ValueError` for a time or a number that the value's type cannot hold.
        """
        fields = self._from_plain(message)
        for name, read in self._from.items():
            fields[name] = read(message)
        return self.value_type(**fields, **value_only)

    def _from_bytes(self, data: bytes) -> Value:
        return self.from_proto(self.message_type.FromString(data))

    def _pair(self, field: Any, optional: bool, default: Any) -> None:
        """Adds the conversions of one field to `_to` and `_from`, where it needs any.

        field: the descriptor of the message's field.
        optional: whether the dataclass's field may be None.
        default: the value for which an empty text stands; "" for the empty text itself.
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
            # An empty part, such as the parameters of a recording in a listing, is left out.
            unset = empty if absent is None else None
            self._to[name] = lambda value: None if (part := get(value)) == unset else write(part)
            mutable = isinstance(empty, dict)  # then two values must not share `empty`
            self._from[name] = lambda message: (
                read(get(message)) if mutable or message.HasField(name) else empty
            )

    def _codec(self, message_name: str) -> Codec | None:
        part = self._parts.get(message_name)
        return _CODECS.get(message_name) if part is None else part.part


def _reader_of(names: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """A function that reads the fields `names` of a value or message into a dictionary."""
    if len(names) < 2:  # `attrgetter` returns no tuple for one name, and refuses none
        return lambda value: {name: getattr(value, name) for name in names}
    read = attrgetter(*names)
    return lambda value: dict(zip(names, read(value), strict=True))


def _is_repeated(field: Any) -> bool:
    # protobuf 4 has no `is_repeated`; later versions have it and warn where `label` is read.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def _is_map(field: Any) -> bool:
    message = field.message_type
    return message is not None and bool(message.GetOptions().map_entry)
