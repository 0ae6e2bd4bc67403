"""Statements of SQLAlchemy, compiled once and run on the driver's own cursor.

To open a transaction and to execute a statement costs SQLAlchemy about 80 µs each, and the driver 6
µs. Where each row has its own transaction, that is most of the time. Such statements are for plain
columns only: values and results are the driver's, without SQLAlchemy's type conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

# Of one call of the driver, which is to be answered soon.
ROWS_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Driver:
    """A connection of the database's driver within a transaction, and its SQL dialect."""

    connection: Any
    dialect: sa.Dialect

    def all(self, sql: str, arguments: Any) -> list[tuple[Any, ...]]:
        """The rows that a SELECT finds."""
        found: list[tuple[Any, ...]] = self.connection.execute(sql, arguments).fetchall()
        return found

    def each(self, sql: str, arguments: Any) -> Iterator[tuple[Any, ...]]:
        """The rows that a SELECT finds, one after the other."""
        found: Iterator[tuple[Any, ...]] = iter(self.connection.execute(sql, arguments))
        return found

    def many(self, sql: str, rows: Sequence[Any]) -> None:
        """Executes a statement once for each of `rows`."""
        if len(rows) == 1:
            self.connection.execute(sql, rows[0])
            return
        cursor = self.connection.cursor()
        try:
            for first in range(0, len(rows), ROWS_AT_ONCE):
                cursor.executemany(sql, rows[first : first + ROWS_AT_ONCE])
        finally:
            cursor.close()


class Prepared:
    """A statement with named parameters, compiled for each database at its first use there."""

    def __init__(self, statement: sa.Select[Any] | sa.Update) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None]] = {}

    def all(self, driver: Driver, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """The rows that a SELECT finds."""
        sql, order = self._for(driver.dialect)
        return driver.all(sql, _arguments(values, order))

    def each(self, driver: Driver, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The rows that a SELECT finds, one after the other."""
        sql, order = self._for(driver.dialect)
        return driver.each(sql, _arguments(values, order))

    def run(self, driver: Driver, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes the statement once for each of `rows`."""
        sql, order = self._for(driver.dialect)
        driver.many(sql, [_arguments(row, order) for row in rows])

    def _for(self, dialect: sa.Dialect) -> tuple[str, tuple[str, ...] | None]:
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(dialect=dialect)
            order = tuple(compiled.positiontup or ()) if compiled.positional else None
            found = self._compiled[dialect.name] = (compiled.string, order)
        return found


class PreparedIn:
    """A SELECT of the rows whose `column` has one of a list of values.

    It is compiled for lists whose length is a power of two only; a list of another length is filled
    up with its last value.
    """

    def __init__(self, statement: sa.Select[Any], column: sa.ColumnElement[Any]) -> None:
        """statement: the SELECT without this condition."""
        self._statement = statement
        self._column = column
        self._for_length = lru_cache(maxsize=None)(self._compile)

    def all(
        self, driver: Driver, values: Sequence[Any], more: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows with one of `values` (at least one).

        more: the statement's own parameters.
        """
        length = 1 << (len(values) - 1).bit_length()
        padded = [*values, *[values[-1]] * (length - len(values))]
        return self._for_length(length).all(
            driver, {f"value{at}": value for at, value in enumerate(padded)} | dict(more or {})
        )

    def _compile(self, length: int) -> Prepared:
        values = [sa.bindparam(f"value{at}", type_=self._column.type) for at in range(length)]
        return Prepared(self._statement.where(self._column.in_(values)))


class InsertMany:
    """An INSERT of rows given as tuples of the values of `columns`, in that order."""

    def __init__(self, table: sa.Table, columns: Sequence[str]) -> None:
        assert all(name in table.c for name in columns)
        self._into = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES "
        self._width = len(columns)

    def run(self, driver: Driver, rows: Sequence[tuple[Any, ...]]) -> None:
        """Inserts `rows` (at least one)."""
        mark = "?" if driver.dialect.name == "sqlite" else "%s"
        driver.many(f"{self._into}({', '.join([mark] * self._width)})", rows)


def _arguments(values: Mapping[str, Any], order: tuple[str, ...] | None) -> Any:
    return values if order is None else [values[name] for name in order]
