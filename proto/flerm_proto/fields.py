"""The conversion of the core's dataclasses to messages and back, by equal field names.

A field is written once in the dataclass and once in `registry.proto`. The conversion follows from
these two declarations. No list of fields is written by hand, so none can lack a field.

A listing has thousands of recordings. So one field of all values is converted after the other, by
loops that run in C: value by value it takes four times as long.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import compress, repeat
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from flerm_core.errors import InvalidInput
from flerm_core.records.value_columns import require_plain, values_from_columns
from flerm_proto.structs import fill_structs, structs_from_proto
from flerm_proto.v1 import registry_pb2 as pb

Value = TypeVar("Value")
Wire = TypeVar("Wire", bound=Message)

# Python's collector of cycles looks at messages that are held together; so they are few.
TOGETHER = 100

_EPOCH = datetime.fromtimestamp(0, UTC)


class Codec(NamedTuple):
    """The conversion of the values of one type, many at once.

    fill: sets messages, which are empty, to the values at the same places.
    values: converts messages to values.
    absent: the value for a message field that is unset, where the dataclass field cannot be None.
        None: the value of an empty message.
    """

    fill: Callable[[Sequence[Any], Sequence[Any]], None]
    values: Callable[[Sequence[Any]], Sequence[Any]]
    absent: Any = None


class FieldCodec(NamedTuple):
    """The conversion of one field of many values.

    fill: sets the field of messages, where it is unset, by the column of the values' fields.
    column: the values' fields, from messages.
    """

    fill: Callable[[Sequence[Any], Sequence[Any]], None]
    column: Callable[[Sequence[Any]], Sequence[Any]]


def set_timestamp(message: Timestamp, moment: datetime) -> None:
    """Sets `message` to `moment`, which must have a time zone. Microseconds are kept.

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


def _fill_timestamps(messages: Sequence[Timestamp], moments: Sequence[datetime]) -> None:
    for message, moment in zip(messages, moments, strict=True):
        set_timestamp(message, moment)


def _timestamps(messages: Sequence[Timestamp]) -> list[datetime]:
    return [timestamp_from_proto(each) for each in messages]


def _fill_shapes(messages: Sequence[pb.Shape], shapes: Sequence[Sequence[int]]) -> None:
    for message, shape in zip(messages, shapes, strict=True):
        message.dims.extend(shape)


def _shapes(messages: Sequence[pb.Shape]) -> list[tuple[int, ...]]:
    return [tuple(each.dims) for each in messages]


_CODECS: dict[str, Codec] = {
    Timestamp.DESCRIPTOR.full_name: Codec(_fill_timestamps, _timestamps, _EPOCH),
    Struct.DESCRIPTOR.full_name: Codec(fill_structs, structs_from_proto),
    pb.Shape.DESCRIPTOR.full_name: Codec(_fill_shapes, _shapes),
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
    ) -> None:
        """Decides for each pair of fields how it is converted. This is done once for each class.

        value_type: the dataclass.
        message_type: the message.
        parts: the codecs of the dataclasses that are fields of `value_type`.
        message_only: names of fields that only the message has.
        value_only: names of fields that only the dataclass has.
        empty_is_default: whether an empty text in the message stands for the field's default in the
            dataclass, as in the messages of queries.

        Raises `TypeError` where a field lacks its partner of the same name, where a field that may
        be None is not `optional` in the message, and for a dataclass with `__post_init__`.
        """
        require_plain(value_type)
        self.value_type, self.message_type = value_type, message_type
        declared = {each.name: each for each in dataclasses.fields(value_type)}  # type: ignore[arg-type]
        wire = message_type.DESCRIPTOR.fields_by_name
        unpaired = (set(declared) ^ set(wire)) - set(message_only) - set(value_only)
        if unpaired:
            raise TypeError(
                f"{value_type.__name__} and {message_type.__name__} differ in {sorted(unpaired)}"
            )
        codecs = _CODECS | {each.message_type.DESCRIPTOR.full_name: each.part for each in parts}
        hints = get_type_hints(value_type)
        self._fields: dict[str, FieldCodec] = {}
        for name in declared.keys() - set(value_only):
            optional = type(None) in get_args(hints[name])
            if optional and not wire[name].has_presence:
                raise TypeError(f"{wire[name].full_name} is not `optional`, and {name} may be None")
            default = declared[name].default if empty_is_default else ""
            self._fields[name] = _field_codec(wire[name], codecs, optional, default, message_type())
        self.part: Codec = Codec(self.fill, self.values)

    def to_proto(self, value: Value, **message_only: Any) -> Wire:
        """The message of `value`. `message_only` gives the fields that only the message has."""
        message = self.message_type(**message_only)
        self.fill([message], [value])
        return message

    def add(self, messages: Any, values: Sequence[Value]) -> None:
        """Adds the messages of `values` to a repeated field."""
        for at in range(0, len(values), TOGETHER):
            part = values[at : at + TOGETHER]
            self.fill([messages.add() for _ in part], part)

    def fill(self, messages: Sequence[Wire], values: Sequence[Value]) -> None:
        """Sets messages, whose paired fields are unset, to the values at the same places."""
        for name, codec in self._fields.items():
            codec.fill(messages, list(map(attrgetter(name), values)))

    def from_proto(self, message: Wire, **value_only: Any) -> Value:
        """The value of `message`. `value_only` gives the fields that only the dataclass has.

        Raises `ValueError` for a time or a number that the value's type cannot hold.
        """
        return self.values([message], **{name: [each] for name, each in value_only.items()})[0]

    def values(self, messages: Sequence[Wire], **value_only: Sequence[Any]) -> list[Value]:
        """The values of `messages`, as `from_proto`. `value_only` gives columns."""
        found: list[Value] = []
        for at in range(0, len(messages), TOGETHER):
            part = slice(at, at + TOGETHER)
            each = list(messages[part])
            columns = {name: codec.column(each) for name, codec in self._fields.items()}
            columns |= {name: column[part] for name, column in value_only.items()}
            found += values_from_columns(self.value_type, columns)
        return found


def _field_codec(
    field: Any, codecs: Mapping[str, Codec], optional: bool, default: Any, unset: Message
) -> FieldCodec:
    """The conversion of one field.

    field: the descriptor of the message's field.
    codecs: of messages, by their full names.
    optional: whether the dataclass's field may be None.
    default: the value for which an empty text stands; "" for the empty text itself.
    unset: a message without the field.
    """
    get = attrgetter(field.name)
    if _is_map(field):
        return _container(field.name, "update", dict)
    if field.message_type is None:
        return (
            _container(field.name, "extend", tuple)
            if _is_repeated(field)
            else _scalar(field, default)
        )
    codec = codecs[field.message_type.full_name]
    return (
        _messages(get, codec)
        if _is_repeated(field)
        else _message(field, codec, optional, get(unset))
    )


@contextmanager
def _fitting(name: str) -> Iterator[None]:
    """Raises `InvalidInput` for a value of the field `name` that does not fit a message, such as
    too large an integer or a lone surrogate.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} does not fit a message: {error}") from error


def _scalar(field: Any, default: Any) -> FieldCodec:
    name, get = field.name, attrgetter(field.name)

    def fill(messages: Sequence[Any], column: Sequence[Any]) -> None:
        if None in column:
            there = [each is not None for each in column]
            messages, column = list(compress(messages, there)), list(compress(column, there))
        with _fitting(name):
            deque(map(setattr, messages, repeat(name), column), maxlen=0)

    def column(messages: Sequence[Any]) -> Sequence[Any]:
        if field.has_presence:
            return [get(each) if each.HasField(name) else None for each in messages]
        found = list(map(get, messages))
        return (
            [each or default for each in found] if isinstance(default, str) and default else found
        )

    return FieldCodec(fill, column)


def _container(name: str, add: str, kind: type[Any]) -> FieldCodec:
    """A map or a list of scalars. Most are empty, and an empty one costs little to notice.

    name: of the field.
    add: the name of the method that adds all entries of a value.
    kind: of the value.
    """

    get = attrgetter(name)

    def fill(messages: Sequence[Any], column: Sequence[Any]) -> None:
        for message, value in zip(messages, column, strict=True):
            if value:
                with _fitting(name):
                    getattr(get(message), add)(value)

    return FieldCodec(
        fill, lambda messages: [kind(each) if each else kind() for each in map(get, messages)]
    )


def _messages(get: Callable[[Any], Any], codec: Codec) -> FieldCodec:
    """A list of messages."""

    def fill(messages: Sequence[Any], column: Sequence[Any]) -> None:
        for message, values in zip(messages, column, strict=True):
            if values:
                repeated = get(message)
                codec.fill([repeated.add() for _ in values], values)

    return FieldCodec(fill, lambda messages: [tuple(codec.values(get(each))) for each in messages])


def _message(field: Any, codec: Codec, optional: bool, unset: Any) -> FieldCodec:
    """A message within another.

    unset: the message of an unset field.
    """
    name, get = field.name, attrgetter(field.name)
    empty = codec.values([unset])[0] if codec.absent is None else codec.absent
    # An empty part, such as the parameters of a recording in a listing, is left out.
    left_out = empty if codec.absent is None and not optional else None
    mutable = isinstance(empty, dict)  # then two values must not share `empty`

    def fill(messages: Sequence[Any], column: Sequence[Any]) -> None:
        kept = [each is not None and each != left_out for each in column]
        parts = [get(each) for each in compress(messages, kept)]
        for part in parts:
            part.SetInParent()
        codec.fill(parts, list(compress(column, kept)))

    def column(messages: Sequence[Any]) -> Sequence[Any]:
        if mutable and not optional:
            return codec.values(list(map(get, messages)))
        there = [each.HasField(name) for each in messages]
        found = iter(codec.values([get(each) for each in compress(messages, there)]))
        absent = None if optional else empty
        return [next(found) if each else absent for each in there]

    return FieldCodec(fill, column)


def _is_repeated(field: Any) -> bool:
    # protobuf 4 has no `is_repeated`; later versions have it and warn where `label` is read.
    repeated = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if repeated is None else repeated)


def _is_map(field: Any) -> bool:
    message = field.message_type
    return message is not None and bool(message.GetOptions().map_entry)
