"""`flerm db`: upgrade, check, copy and clean up the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flerm_server.cli.common import Db, database, one_sentence
from flerm_server.settings import DEFAULT_DB

MAX_DAYS = 36_500.0  # a century: what is older than any recording

app = typer.Typer(
    no_args_is_help=True, help="The database: upgrade, current, check, backup, restore, prune."
)


@app.command()
def upgrade(db: Db = DEFAULT_DB) -> None:
    """Creates the tables, or brings them to this version's schema. A SQLite file is copied first.

    Example: flerm db upgrade --db postgresql://flerm@db.example/flerm
    """
    from flerm_server.store.sql import schema

    with one_sentence(), database(db, must_exist=False) as engine:
        before, after = schema.upgrade(engine)
        moved = f"schema {before.current or '(empty)'} -> {after.current}"
        typer.echo(moved if before != after else f"schema {after.current}, up to date")


@app.command()
def current(db: Db = DEFAULT_DB) -> None:
    """Shows the schema of the database and the one that this version has.

    Example: flerm db current --db sqlite:///runs.db
    """
    from flerm_server.store.sql import schema

    with one_sentence(), database(db) as engine:
        state = schema.state(engine)
        typer.echo(f"schema {state.current or '(empty)'}, this version has {state.head}")


@app.command()
def check(db: Db = DEFAULT_DB) -> None:
    """Says whether this version can serve the database; exit code 5 when it cannot.

    Example: flerm db check --db sqlite:///runs.db
    """
    from flerm_server.store.sql import schema

    with one_sentence(), database(db) as engine:
        typer.echo(f"schema {schema.check(engine).current}: this version can serve it")


@app.command()
def backup(destination: Path, db: Db = DEFAULT_DB) -> None:
    """Copies a SQLite database to a new file. A server may write to it meanwhile.

    Example: flerm db backup monday.db --db sqlite:///runs.db
    """
    from flerm_server.store.sql import backups

    with one_sentence(), database(db) as engine:
        typer.echo(f"copied to {backups.backup(engine, destination)}")


@app.command()
def restore(
    backup: Annotated[Path, typer.Argument(help="A copy that `flerm db backup` made")],
    db: Db = DEFAULT_DB,
) -> None:
    """Puts a copy in the place of a SQLite database, with all that was recorded since. Stop the
    server first.

    Example: flerm db restore monday.db --db sqlite:///runs.db
    """
    from flerm_server.store.sql import backups
    from flerm_server.store.sql.database_url import parse_url

    with one_sentence():
        typer.echo(f"restored {backups.restore(parse_url(db), backup)} from {backup}")


@app.command()
def prune(
    older_than: Annotated[
        float,
        typer.Option(help="Days since the last change of a recording", min=0, max=MAX_DAYS),
    ],
    db: Db = DEFAULT_DB,
    family: Annotated[str, typer.Option(help="Only recordings of this family")] = "",
    status: Annotated[
        str, typer.Option(help="Only recordings of this status, such as failed or interrupted")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted")
    ] = False,
) -> None:
    """Deletes old recordings with all their measurements, for good, and gives back their room on
    the disk. Appends to a SQLite file wait meanwhile.

    Example: flerm db prune --older-than 90 --status failed --db sqlite:///runs.db
    """
    from datetime import timedelta

    from flerm_core.records.queries import RecordingFilter
    from flerm_core.records.recording import now
    from flerm_server.store.sql import disk_space
    from flerm_server.store.sql.prune import prune as prune_recordings
    from flerm_server.store.sql.store import open_store

    with one_sentence():
        with database(db):
            store = open_store(db)
        try:
            before = now() - timedelta(days=older_than)
            filters = RecordingFilter(family=family, status=status, created_before=before)
            count, rows = prune_recordings(store.engine, filters, before, dry_run=dry_run)
            typer.echo(
                f"{'would delete' if dry_run else 'deleted'} {count} recordings with {rows} rows"
            )
            if not dry_run:
                lists = disk_space.delete_unused_parameter_lists(store.engine)
                given_back = disk_space.give_back(store.engine)
                typer.echo(f"deleted {lists} unused parameter lists; {given_back}", err=True)
        finally:
            store.close()
