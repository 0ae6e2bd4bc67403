"""Statements of SQLAlchemy, compiled once and run on the driver's own cursor.

To open a transaction and to execute a statement costs SQLAlchemy about 80 µs each, and the driver 6
µs. Where each row has its own transaction, that is most of the time. Such statements are for plain
columns only: values and results are the driver's, without SQLAlchemy's type conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

ROWS_AT_ONCE = 2000  # of one statement, which is to be answered soon
Rows = list[tuple[Any, ...]]


class Statement(NamedTuple):
    """A statement with its arguments, in the driver's form."""

    sql: str
    arguments: Any


@dataclass(slots=True)
class Driver:
    """A connection of the database's driver within a transaction, and its SQL dialect.

    answers: what the statements found that were sent along with the transaction's begin.
    last: statements to send along with its commit. A message to PostgreSQL takes longer than most
        statements.
    """

    connection: Any
    dialect: sa.Dialect
    answers: Sequence[Rows] = ()
    last: list[Statement] = field(default_factory=list)

    @classmethod
    def of(cls, connection: sa.Connection) -> Driver:
        """The driver's connection under one of SQLAlchemy's, within its transaction."""
        return cls(connection.connection.driver_connection, connection.dialect)

    def all(self, statement: Statement) -> Rows:
        """The rows that a SELECT finds."""
        found: Rows = self.connection.execute(*statement).fetchall()
        return found

    def each(self, statement: Statement) -> Iterator[tuple[Any, ...]]:
        """The rows that a SELECT finds, one after the other."""
        found: Iterator[tuple[Any, ...]] = iter(self.connection.execute(*statement))
        return found


class Prepared:
    """A statement with named parameters, compiled for each database at its first use there."""

    def __init__(self, statement: sa.Select[Any] | sa.Update) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None]] = {}

    def all(self, driver: Driver, values: Mapping[str, Any]) -> Rows:
        """The rows that a SELECT finds."""
        return driver.all(self.of(driver.dialect, values))

    def each(self, driver: Driver, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The rows that a SELECT finds, one after the other."""
        return driver.each(self.of(driver.dialect, values))

    def of(self, dialect: sa.Dialect, values: Mapping[str, Any]) -> Statement:
        """The statement with these values of its parameters."""
        sql, order = self._for(dialect)
        return Statement(sql, values if order is None else [values[name] for name in order])

    def _for(self, dialect: sa.Dialect) -> tuple[str, tuple[str, ...] | None]:
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(dialect=dialect)
            order = tuple(compiled.positiontup or ()) if compiled.positional else None
            found = self._compiled[dialect.name] = (compiled.string, order)
        return found


class PreparedIn:
    """A SELECT of the rows whose `column` has one of a list of values.

    PostgreSQL takes the list as one array: a thousand arguments cost its driver 5 ms. For SQLite
    the SELECT is compiled for lists whose length is a power of two only; a list of another length
    is filled up with its last value.
    """

    def __init__(self, statement: sa.Select[Any], column: sa.ColumnElement[Any]) -> None:
        """statement: the SELECT without this condition."""
        self._statement = statement
        self._column = column
        # Texts without a length: a cast to VARCHAR(36) would cut a longer one off.
        kind = sa.Text() if isinstance(column.type, sa.String) else column.type
        array = sa.bindparam("values", type_=sa.ARRAY(kind))
        self._of_array = Prepared(statement.where(column == sa.any_(array)))
        self._for_length = lru_cache(maxsize=None)(self._compile)

    def all(
        self, driver: Driver, values: Sequence[Any], more: Mapping[str, Any] | None = None
    ) -> Rows:
        """The rows with one of `values` (at least one).

        more: the statement's own parameters.
        """
        return driver.all(self.of(driver.dialect, values, more))

    def each(
        self, driver: Driver, values: Sequence[Any], more: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """The rows of `all`, one after the other."""
        return driver.each(self.of(driver.dialect, values, more))

    def of(
        self, dialect: sa.Dialect, values: Sequence[Any], more: Mapping[str, Any] | None = None
    ) -> Statement:
        """The statement with these values; see `all`."""
        others = dict(more or {})
        if dialect.name == "postgresql":
            return self._of_array.of(dialect, {"values": list(values)} | others)
        length = 1 << (len(values) - 1).bit_length()
        padded = [*values, *[values[-1]] * (length - len(values))]
        return self._for_length(length).of(
            dialect, {f"value{at}": value for at, value in enumerate(padded)} | others
        )

    def _compile(self, length: int) -> Prepared:
        values = [sa.bindparam(f"value{at}", type_=self._column.type) for at in range(length)]
        return Prepared(self._statement.where(self._column.in_(values)))


class InsertMany:
    """An INSERT of rows given as tuples of the values of `columns`, in that order."""

    def __init__(self, table: sa.Table, columns: Sequence[str]) -> None:
        self._into = f"INSERT INTO {table.name} ({', '.join(columns)}) "
        self._types = [table.c[name].type for name in columns]
        self._one = f"{self._into}VALUES ({', '.join(['%s'] * len(columns))})"
        self._sqlite = self._one.replace("%s", "?")
        self._many = ""

    def run(self, driver: Driver, rows: Sequence[tuple[Any, ...]]) -> None:
        """Inserts `rows` (at least one), at the latest with the commit."""
        if driver.dialect.name == "sqlite":
            driver.last += [Statement(self._sqlite, row) for row in rows]
        elif len(rows) == 1:
            driver.last.append(Statement(self._one, rows[0]))
        else:
            self._many = self._many or self._of_arrays(driver.dialect)
            for at in range(0, len(rows), ROWS_AT_ONCE):
                columns = zip(*rows[at : at + ROWS_AT_ONCE], strict=True)
                driver.connection.execute(self._many, list(map(list, columns)))

    def _of_arrays(self, postgres: sa.Dialect) -> str:
        # One statement for all rows, as binary arrays, takes half the time of one for each row.
        arrays = ", ".join(f"%b::{each.compile(postgres)}[]" for each in self._types)
        return f"{self._into}SELECT * FROM unnest({arrays})"
