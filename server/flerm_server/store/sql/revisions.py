"""Revisions of the schema: the newest that this version knows, and what is too new for it."""

from __future__ import annotations

from pathlib import Path

MIGRATIONS = Path(__file__).parents[2] / "migrations"


def head() -> str:
    """The newest revision that this version knows, from the first four characters of file names."""
    return max(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def newer_than_known(current: str, oldest_server: str, known: str) -> str:
    """What is said of a database that only newer versions can serve; empty for any other.

    current: its revision. oldest_server: the oldest whose servers it serves. known: this version's.
    """
    if oldest_server <= known:
        return ""
    return (
        f"has schema {current}, which only servers that know {oldest_server} can serve; this one "
        f"knows {known}: install a newer flerm"
    )
