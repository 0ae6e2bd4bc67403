"""Core statements compiled once and run on the driver's own cursor.

Executing a Core statement costs about 80 µs, the same SQL on the driver's cursor 6: where one row is one transaction, that is
most of the time. Only for plain columns: values and results are the driver's, without SQLAlchemy's type conversion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa


class Prepared:
    """One statement with named bind parameters, for either database. Compiled at its first use on each."""

    def __init__(self, statement: sa.Select[Any] | sa.Insert | sa.Update, columns: Sequence[str] = ()) -> None:
        """`columns`: those that an insert fills."""
        self._statement = statement
        self._columns = list(columns) or None
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None]] = {}

    def all(self, connection: sa.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows that a select finds."""
        sql, order = self._for(connection.dialect)
        cursor = _driver(connection).cursor()
        try:
            cursor.execute(sql, _arguments(values, order))
            found: list[tuple[Any, ...]] = cursor.fetchall()
        finally:
            cursor.close()
        return found

    def run(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes it once for each of `rows`."""
        sql, order = self._for(connection.dialect)
        cursor = _driver(connection).cursor()
        try:
            cursor.executemany(sql, [_arguments(row, order) for row in rows])
        finally:
            cursor.close()

    def _for(self, dialect: sa.Dialect) -> tuple[str, tuple[str, ...] | None]:
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
            order = tuple(compiled.positiontup or ()) if compiled.positional else None
            found = self._compiled[dialect.name] = (compiled.string, order)
        return found


class PreparedIn:
    """A select whose rows have `column` in a list of values, in sizes of powers of two (the last value repeated)."""

    def __init__(self, statement: sa.Select[Any], column: sa.ColumnElement[Any]) -> None:
        """`statement` without the condition."""
        self._statement = statement
        self._column = column
        self._sized = lru_cache(maxsize=None)(self._of_size)

    def all(self, connection: sa.Connection, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The rows that have one of `values`, of which there is at least one."""
        size = 1 << (len(values) - 1).bit_length()
        padded = [*values, *[values[-1]] * (size - len(values))]
        return self._sized(size).all(connection, {f"value{at}": value for at, value in enumerate(padded)})

    def _of_size(self, size: int) -> Prepared:
        values = [sa.bindparam(f"value{at}", type_=self._column.type) for at in range(size)]
        return Prepared(self._statement.where(self._column.in_(values)))


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection


def _arguments(values: Mapping[str, Any], order: tuple[str, ...] | None) -> Any:
    return values if order is None else [values[name] for name in order]
