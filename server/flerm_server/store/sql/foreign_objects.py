"""What somebody else put into a SQLite file that says that it is a registry's.

A file may come from a stranger, as a backup. Its triggers would act in the server's name, and a
view in the place of a table shows what is not there.
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
    """Which triggers are not ours, and which of our tables are views; empty: none.

    query: gives the rows of a SELECT.
    """
    found = query("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')")
    strange = [
        f"the {kind} {name!r}"
        for kind, name in sorted(map(tuple, found))
        if (name not in TRIGGERS if kind == "trigger" else name in TABLES)
    ]
    return join_names(strange) if strange else ""
