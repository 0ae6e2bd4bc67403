"""Core values as rows of the tables and back, field by field, by equal names of field and column.

A field is written once in the dataclass and once in the table. Its conversion follows from the two
declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from datetime import datetime
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import sqlalchemy as sa

from flerm_core.records.recording import (
    Ending,
    Family,
    ParameterList,
    Recording,
    RecordingSpec,
)
from flerm_server.store.sql.engine import timestamp_from_column, timestamp_to_column
from flerm_server.store.sql.tables import families, recordings

Value = TypeVar("Value")

NO_PARAMETERS = ParameterList((), (), ())


class RowMapper(Generic[Value]):
    """Converts a dataclass to the columns of a table and back."""

    def __init__(
        self, value_type: type[Value], table: sa.Table, *, elsewhere: Sequence[str] = ()
    ) -> None:
        """Pairs fields and columns. The work by declaration is done here, once for each class.

        value_type: the dataclass.
        table: its table, which may have columns of its own besides.
        elsewhere: fields that are not read from columns of this table by their name.

        Raises `TypeError` where a field has no column.
        """
        self.value_type = value_type
        hints = get_type_hints(value_type)
        names = [each.name for each in fields(value_type) if each.name not in elsewhere]  # type: ignore[arg-type]
        missing = [name for name in names if name not in table.c]
        if missing:
            raise TypeError(f"table {table.name} has no column for {missing}")
        self._to = {name: _writer(name, hints[name]) for name in names}
        self._names = names
        self._values = itemgetter(*(list(table.c).index(table.c[name]) for name in names))
        readers = ((at, _reader(hints[name])) for at, name in enumerate(names))
        self._readers = [(at, read) for at, read in readers if read is not None]

    def to_row(self, value: Value) -> dict[str, Any]:
        """The columns that `value` fills."""
        return {name: write(value) for name, write in self._to.items()}

    def from_rows(self, rows: Sequence[sa.Row[Any]], **elsewhere: Iterable[Any]) -> list[Value]:
        """The values in `rows`, which begin with all columns of the table, in their order.

        elsewhere: for each field that the columns do not hold, its values in the order of `rows`.
        """
        # Column by column, and by place: a listing has thousands of rows, and to look up each
        # column of each row by its name costs as much as all else here.
        columns: list[Iterable[Any]] = list(zip(*map(self._values, rows), strict=True))
        if not columns:
            return []
        for at, read in self._readers:
            columns[at] = map(read, columns[at])
        names = (*self._names, *elsewhere)
        return [
            self.value_type(**dict(zip(names, values, strict=True)))
            for values in zip(*columns, *elsewhere.values(), strict=True)
        ]


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


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    """A function that makes a field of what its column holds; None where both are the same."""
    if datetime in (hint, *get_args(hint)):
        return lambda value: None if value is None else timestamp_from_column(value)
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda value: hint(**value)
    return tuple if get_origin(hint) is tuple else None


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


def select_recordings(now: int) -> sa.Select[Any]:
    """All columns of recordings, the name of their family, and `shown_status`: see `status_at`."""
    return sa.select(
        recordings, families.c.name.label("family"), status_at(now).label("shown_status")
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
    specs = SPEC.from_rows(
        rows,
        family=[row.family for row in rows],
        parameters=repeat(parameters, len(rows)),
        tags=[tags.get(row.key, {}) for row in rows],
    )
    return RECORDING.from_rows(rows, spec=specs, status=[row.shown_status for row in rows])


def family_from_row(row: sa.Row[Any], count: int, rates: tuple[float, ...]) -> Family:
    """A family from its row.

    count: the number of its recordings.
    rates: the learning rates of those with role base.
    """
    return FAMILY.from_rows([row], recordings=[count], learning_rates=[rates])[0]
