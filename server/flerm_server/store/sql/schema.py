"""The schema's revision: reading, checking and upgrading it.

A migration first adds what is new; what is old goes one release later. So servers of two versions
can work on one database. The table `schema_support` has the oldest revision whose servers can still
do so, and `NEEDS` is the oldest revision that this server can work with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from flerm_core.errors import Refused, join_names
from flerm_server.store.sql import change_counts, revisions
from flerm_server.store.sql.backups import backup
from flerm_server.store.sql.database_url import database_file
from flerm_server.store.sql.engine import connections_of, transaction
from flerm_server.store.sql.foreign_objects import foreign_objects
from flerm_server.store.sql.revisions import head, newer_than_known
from flerm_server.store.sql.sqlite_connections import create_file
from flerm_server.store.sql.tables import NEEDS, metadata, schema_support

OLDEST = "0001"  # what all migrations together write to `schema_support`
ALEMBIC_VERSION = """CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""
REVISION = re.compile("[0-9]{4}")
UPGRADE_LOCK = 0x666C65726D  # the number of a PostgreSQL advisory lock: the bytes of "flerm"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """Revisions of the schema.

    current: the database's; empty for an empty database.
    head: the newest that this version knows.
    oldest_server: the oldest whose servers the database still serves.
    elsewhere: the schemas of an empty PostgreSQL database that have a registry's tables, which the
        role's search_path does not lead to.
    """

    current: str
    head: str
    oldest_server: str
    elsewhere: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """Why this server cannot serve the database; empty when it can."""
        if self.elsewhere:
            return (
                "the search_path of the role leads to no tables of a registry, but the database "
                f"has such tables in {_schemas(self.elsewhere)}: set search_path to it (ALTER "
                "DATABASE ... SET search_path, which no copy of a database holds), or, for a "
                "registry of its own, make tables with `flerm db upgrade`"
            )
        if not self.current:
            return "the database is empty: make its tables with `flerm db upgrade`"
        if self.current < NEEDS:
            return (
                f"the database has schema {self.current}, this server needs {NEEDS} or newer: "
                "run `flerm db upgrade`"
            )
        newer = newer_than_known(self.current, self.oldest_server, self.head)
        return f"the database {newer}" if newer else ""


def state(engine: sa.Engine) -> SchemaState:
    """The revisions of a database. Raises `Unreachable`, and `Refused` for another program's."""
    with transaction(engine) as connection:
        return _state(connection)


def _state(connection: sa.Connection) -> SchemaState:
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if tables and "recordings" in tables:
            raise Refused(
                "the database has tables of a registry but no schema revision: "
                "it was not made by `flerm db upgrade`"
            )
        return SchemaState("", head(), "", _elsewhere(connection))
    if "schema_support" not in tables:
        raise Refused(
            "the database belongs to another program (its alembic_version is not a registry's): "
            "name one of its own"
        )
    current = _revision(connection, "alembic_version", "version_num")
    oldest = _revision(connection, "schema_support", "oldest_server") if current else ""
    if current and not oldest:
        raise Refused("the table schema_support of the database has no revision: restore a backup")
    newest = head()
    if connection.dialect.name == "sqlite" and current <= newest:
        strange = foreign_objects(lambda sql: connection.exec_driver_sql(sql).fetchall())
        if strange:
            raise Refused(
                f"no registry made {strange} in the database: drop what you made yourself, or "
                "restore a backup"
            )
    return SchemaState(current, newest, oldest)


def _elsewhere(connection: sa.Connection) -> tuple[str, ...]:
    if connection.dialect.name != "postgresql":
        return ()
    found = connection.exec_driver_sql(
        "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE relname IN ('schema_support', 'recordings') AND relkind IN ('r', 'p') "
        "GROUP BY nspname HAVING count(*) = 2 ORDER BY nspname"
    )
    return tuple(found.scalars())


def _schemas(names: tuple[str, ...]) -> str:
    return f"the schema{'s' * (len(names) > 1)} {join_names(map(repr, names))}"


def _revision(connection: sa.Connection, table: str, column: str) -> str:
    """The revision that a table holds; empty: it has no row. Raises `Refused` for other content."""
    found = connection.exec_driver_sql(f"SELECT {column} FROM {table}").scalars().fetchmany(2)
    if not found:
        return ""
    if len(found) > 1 or not REVISION.fullmatch(str(found[0])):
        raise Refused(
            f"the table {table} of the database holds {join_names(map(repr, found))}; "
            "one revision of four digits is allowed: restore a backup"
        )
    return str(found[0])


def check(engine: sa.Engine) -> SchemaState:
    """The revisions of a database that this server can serve. Raises `Refused` for any other."""
    found = state(engine)
    if found.problem:
        raise Refused(found.problem)
    return found


def check_writable(engine: sa.Engine) -> SchemaState:
    """The revisions, as `check`, read by a transaction that also wrote something to the disk.

    Raises `Unreachable` when the database cannot be written now, or its disk is full.
    """
    with transaction(engine, writes=True) as connection:
        found = _state(connection)
        if not found.problem:
            same = schema_support.c.oldest_server
            connection.execute(schema_support.update().values(oldest_server=same))
            connections_of(engine).require_room(connection.connection.driver_connection)
    if found.problem:
        raise Refused(found.problem)
    return found


def upgrade(engine: sa.Engine) -> tuple[SchemaState, SchemaState]:
    """Brings the database to this version's newest revision; its revisions before and after.

    It is one transaction: an upgrade that fails leaves the old schema. Upgrades that run at the
    same time wait for each other. A SQLite file is made where there is none; an existing one is
    copied first.
    """
    if engine.dialect.name == "sqlite":
        create_file(database_file(engine.url))
    with transaction(engine, writes=True, unhurried=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
        before = _state(connection)
        if before.current < before.head:
            if before.current and connection.dialect.name == "sqlite":
                # This transaction holds the write lock: nobody changes the file before it is
                # upgraded, and nobody else copies it.
                backup(engine, _backup_name(database_file(engine.url), before.current))
            if before.current or connection.dialect.name != "sqlite":
                migrate(connection)
            else:
                _create_all(connection)
    return before, state(engine)


def migrate(connection: sa.Connection) -> None:
    """Runs the missing migrations within the caller's transaction."""
    # Alembic takes a third of a second and 10 MiB, and only upgrades need it.
    from alembic.command import upgrade as alembic_upgrade
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(revisions.MIGRATIONS))
    config.attributes["connection"] = connection
    alembic_upgrade(config, "head")


def _create_all(connection: sa.Connection) -> None:
    """Makes the tables of an empty SQLite database at once, as all migrations together would.

    So a server's first start does not wait for the migrations. A test compares the two.
    """
    metadata.create_all(connection, checkfirst=False)
    connection.execute(schema_support.insert().values(oldest_server=OLDEST))
    version = (ALEMBIC_VERSION, f"INSERT INTO alembic_version VALUES ('{head()}')")
    for statement in (*change_counts.SQLITE, *version):
        connection.exec_driver_sql(statement)


def _backup_name(file: Path, revision: str) -> Path:
    name, count = file.with_name(f"{file.name}.before-upgrade-from-{revision}"), 1
    while name.exists():
        count += 1
        name = file.with_name(f"{file.name}.before-upgrade-from-{revision}.{count}")
    return name
