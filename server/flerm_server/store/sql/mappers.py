"""Core values as rows of the tables and back, field by field, by equal names of field and column.

A field is written once in the dataclass and once in the table. Its conversion follows from the two
declarations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import sqlalchemy as sa

from flerm_core.records.recording import (
    Ending,
    Family,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_core.records.value_columns import require_plain, values_from_columns
from flerm_server.store.sql.engine import timestamp_from_column, timestamp_to_column
from flerm_server.store.sql.tables import families, recordings

Value = TypeVar("Value")

MOST_KEPT = 512  # texts of a JSON column whose values are kept
SHORT_JSON = 2048  # characters of the longest of them

NO_PARAMETERS = ParameterList((), (), ())
NO_TAGS: Mapping[str, str] = {}  # shared, as all that was read is


class RowMapper(Generic[Value]):
    """Converts a dataclass to the columns of a table and back."""

    def __init__(
        self, value_type: type[Value], table: sa.Table, *, elsewhere: Sequence[str] = ()
    ) -> None:
        """Pairs fields and columns. The work by declaration is done here, once for each class.

        value_type: the dataclass.
        table: its table, which may have columns of its own besides.
        elsewhere: fields that are not read from columns of this table by their name.

        Raises `TypeError` where a field has no column, and for a dataclass with `__post_init__`.
        """
        require_plain(value_type)
        self.value_type = value_type
        hints = get_type_hints(value_type)
        names = [each.name for each in fields(value_type) if each.name not in elsewhere]  # type: ignore[arg-type]
        missing = [name for name in names if name not in table.c]
        if missing:
            raise TypeError(f"table {table.name} has no column for {missing}")
        self._to = {name: _writer(name, hints[name]) for name in names}
        places = {each.name: at for at, each in enumerate(table.c)}
        self._places = {name: places[name] for name in names}
        readers = ((name, _reader(hints[name], table.c[name])) for name in names)
        self._readers = {name: read for name, read in readers if read is not None}

    def to_row(self, value: Value) -> dict[str, Any]:
        """The columns that `value` fills."""
        return {name: write(value) for name, write in self._to.items()}

    def from_columns(
        self, columns: Sequence[Sequence[Any]], **elsewhere: Sequence[Any]
    ) -> list[Value]:
        """The values in columns, of which the first are those of `columns_of`.

        elsewhere: for each field that the table does not hold, its column.
        """
        # By place: to look up each field of each row by its name costs as much as all else here.
        found = {name: columns[at] for name, at in self._places.items()}
        found |= {name: read(found[name]) for name, read in self._readers.items()}
        return values_from_columns(self.value_type, found | elsewhere)


def _writer(name: str, hint: Any) -> Callable[[Any], Any]:
    """A function that reads the field `name` of a value, in the form that its column takes."""
    get = attrgetter(name)
    if datetime in (hint, *get_args(hint)):
        return lambda value: None if (each := get(value)) is None else timestamp_to_column(each)
    if is_dataclass(hint):
        return lambda value: asdict(get(value))
    if get_origin(hint) is Mapping:
        return lambda value: dict(get(value))
    return (lambda value: list(get(value))) if get_origin(hint) is tuple else get


def _reader(hint: Any, column: sa.Column[Any]) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """A function that makes fields of what their column holds; None where both are the same."""
    if datetime in (hint, *get_args(hint)):
        return lambda found: [
            None if each is None else timestamp_from_column(each) for each in found
        ]
    if not isinstance(column.type, sa.JSON):
        return None
    if isinstance(hint, type) and is_dataclass(hint):
        return _reader_of_texts(lambda text: hint(**json.loads(text)))
    if get_origin(hint) is tuple:
        return _reader_of_texts(lambda text: tuple(json.loads(text)))
    return _reader_of_texts(json.loads)


def _reader_of_texts(read: Callable[[str], Any]) -> Callable[[Sequence[str]], list[Any]]:
    """Reads each text. Recordings of a sweep share their settings, which are read once and then
    shared; nobody changes what was read.
    """
    short = lru_cache(MOST_KEPT)(read)
    return lambda texts: [(short if len(each) <= SHORT_JSON else read)(each) for each in texts]


def columns_of(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    """The columns of a table in the form that `RowMapper` reads: JSON is its text.

    A driver would parse the JSON of each row, which takes longer than all else of the row.
    """
    return [
        sa.cast(each, sa.Text).label(each.name) if isinstance(each.type, sa.JSON) else each
        for each in table.c
    ]


SPEC = RowMapper(RecordingSpec, recordings, elsewhere=["family", "parameters", "tags"])
RECORDING = RowMapper(Recording, recordings, elsewhere=["spec", "status"])
FAMILY = RowMapper(Family, families, elsewhere=["recordings", "learning_rates"])


def parameters_to_row(parameters: ParameterList) -> dict[str, Any]:
    """A parameter list as the JSON of its table."""
    return asdict(parameters)


def parameters_from_row(content: Mapping[str, Any]) -> ParameterList:
    """A parameter list from the JSON of its table."""
    columns = {each.name: tuple(content[each.name]) for each in fields(ParameterList)}
    return ParameterList(**columns | {"shapes": tuple(map(tuple, columns["shapes"]))})


def spec_to_row(spec: RecordingSpec) -> dict[str, Any]:
    """The columns of `recordings` that the client's specification fills."""
    return SPEC.to_row(spec) | {"parameter_count": len(spec.parameters)}


def ending_to_row(ending: Ending) -> dict[str, Any]:
    """The columns of `recordings` that the end of an attempt sets, except `finished_at`.

    Tokens that the end does not state stay those of the last row.
    """
    stated = ending.as_dict()
    del stated["finished_at"]
    if ending.tokens is None:
        del stated["tokens"]
    return stated


def status_at(now: int) -> sa.Case[str]:
    """What a recording's status reads as at `now`, in microseconds.

    A running recording whose lease has ended is interrupted.
    """
    lapsed = sa.and_(recordings.c.status == "running", recordings.c.lease_until < now)
    return sa.case((lapsed, "interrupted"), else_=recordings.c.status)


# The places of columns in what `select_recordings` finds.
_KEY = list(recordings.c).index(recordings.c.key)
_FAMILY, _SHOWN_STATUS = len(recordings.c), len(recordings.c) + 1


def select_recordings(now: int) -> sa.Select[Any]:
    """The columns of recordings, the name of their family, and `shown_status`: see `status_at`."""
    return sa.select(
        *columns_of(recordings),
        families.c.name.label("family"),
        status_at(now).label("shown_status"),
    ).join_from(recordings, families)


def recordings_from_rows(
    rows: Sequence[sa.Row[Any]],
    tags: Mapping[int, Mapping[str, str]],
    parameters: ParameterList = NO_PARAMETERS,
) -> list[Recording]:
    """The recordings of rows of `select_recordings`.

    tags: by the recording's key.
    parameters: of each of them.
    """
    if not rows:
        return []
    columns = list(zip(*rows, strict=True))
    keys, names, statuses = (columns[at] for at in (_KEY, _FAMILY, _SHOWN_STATUS))
    specs = SPEC.from_columns(
        columns,
        family=names,
        parameters=[parameters] * len(rows),
        tags=[tags.get(key, NO_TAGS) for key in keys],
    )
    return RECORDING.from_columns(columns, spec=specs, status=statuses)


def family_from_row(row: sa.Row[Any], count: int, rates: tuple[float, ...]) -> Family:
    """A family from its row, of the columns `columns_of`.

    count: the number of its recordings.
    rates: the learning rates of those with role base.
    """
    return FAMILY.from_columns(list(zip(row)), recordings=[count], learning_rates=[rates])[0]
