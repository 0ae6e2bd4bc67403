"""Triggers and views in a SQLite file that no registry has made.

A stranger's file may be offered as a backup. Its triggers would change rows while the server
writes, and a view with the name of a table would answer in the table's place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flerm_core.errors import join_names
from flerm_server.store.sql import change_counts
from flerm_server.store.sql.tables import metadata

TABLES = frozenset((*metadata.tables, "alembic_version"))
TRIGGERS = frozenset(statement.split()[2] for statement in change_counts.SQLITE)


def foreign_objects(query: Callable[[str], Sequence[Sequence[Any]]]) -> str:
    """The triggers that are not ours, and the views with the name of one of our tables.

    Empty where there is none.

    query: gives the rows of a SELECT.
    """
    found = query("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')")
    strange = [
        f"the {kind} {name!r}"
        for kind, name in sorted(map(tuple, found))
        if (name not in TRIGGERS if kind == "trigger" else name in TABLES)
    ]
    return join_names(strange) if strange else ""
