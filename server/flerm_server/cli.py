"""The server's commands of `flerm`: serve, and what keeps its database."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flerm_core.errors import FlermError

if TYPE_CHECKING:
    from flerm_server.store.schema import SchemaState

app = typer.Typer(no_args_is_help=True, add_completion=False)
db_app = typer.Typer(no_args_is_help=True, help="The database: upgrade, current, check, backup, prune.")
app.add_typer(db_app, name="db")

DEFAULT_DB = "sqlite:///flerm.db"
Db = Annotated[str, typer.Option(help="sqlite:///FILE or postgresql://USER@HOST/DATABASE", envvar="FLERM_DB")]


@app.callback()
def root() -> None:
    """The FLeRM registry's server."""


@app.command()
def serve(
    db: Db = DEFAULT_DB,
    grpc: Annotated[str, typer.Option(help="HOST:PORT of the gRPC side; port 0 takes a free one")] = "127.0.0.1:50051",
    http: Annotated[str, typer.Option(help="HOST:PORT of REST, pages and metrics")] = "127.0.0.1:8080",
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this host without tokens and TLS")] = False,
    announce: Annotated[Path | None, typer.Option(help="Write the real addresses to this file, as JSON")] = None,
    drain: Annotated[float, typer.Option(help="Seconds that calls in flight may take after SIGTERM", min=0)] = 10.0,
    lease: Annotated[float, typer.Option(help="Seconds after which a silent recording reads as interrupted", min=1)] = 120.0,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may read REST (CORS), such as https://dash.example; repeatable")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Serves a registry: gRPC for jobs, HTTP for everybody else.

    Example: flerm serve --db sqlite:///runs.db --grpc 127.0.0.1:50051 --http 127.0.0.1:8080
    """
    with _one_sentence():
        # gRPC's own log lines tell nothing that our sentences do not; who debugs gRPC sets the variable.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # Here, not above: `flerm --help` need not wait for SQLAlchemy and FastAPI.
        from flerm_server.logs import configure
        from flerm_server.serve import Server, run
        from flerm_server.settings import Address, Settings

        configure(log_level)
        settings = Settings(
            db=db,
            grpc=Address.parse("grpc", grpc),
            http=Address.parse("http", http),
            insecure=insecure,
            drain_seconds=drain,
            lease_seconds=lease,
            announce=announce,
            allowed_origins=tuple(allow_origin or ()),
        )

        def say(server: Server) -> None:
            typer.echo(f"registry: grpc://{server.grpc_address.text}  http://{server.http_address.text}/")
            sys.stdout.flush()

        run(settings, say)


@db_app.command()
def upgrade(db: Db = DEFAULT_DB) -> None:
    """Makes the tables, or brings them to this version's schema. A SQLite file is copied first.

    Example: flerm db upgrade --db postgresql://flerm@db.example/flerm
    """
    with _one_sentence(), _Database(db) as database:
        before, after = database.upgrade()
        typer.echo(
            f"schema {before.current or '(empty)'} -> {after.current}"
            if before != after
            else f"schema {after.current}, up to date"
        )


@db_app.command()
def current(db: Db = DEFAULT_DB) -> None:
    """Shows the database's schema and this version's.

    Example: flerm db current --db sqlite:///runs.db
    """
    with _one_sentence(), _Database(db) as database:
        state = database.state()
        typer.echo(f"schema {state.current or '(empty)'}, this version has {state.head}")


@db_app.command()
def check(db: Db = DEFAULT_DB) -> None:
    """Says whether this version can serve the database; exit code 5 when it cannot.

    Example: flerm db check --db sqlite:///runs.db
    """
    with _one_sentence(), _Database(db) as database:
        typer.echo(f"schema {database.check().current}: this version can serve it")


@db_app.command()
def backup(destination: Path, db: Db = DEFAULT_DB) -> None:
    """Copies a SQLite database in use to a new file, consistently.

    Example: flerm db backup monday.db --db sqlite:///runs.db
    """
    with _one_sentence(), _Database(db) as database:
        typer.echo(f"copied to {database.backup(destination)}")


@db_app.command()
def prune(
    older_than: Annotated[float, typer.Option(help="Days since a recording was last written to", min=0)],
    db: Db = DEFAULT_DB,
    family: Annotated[str, typer.Option(help="Only of this family")] = "",
    status: Annotated[str, typer.Option(help="Only of this status, such as failed or interrupted")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go")] = False,
) -> None:
    """Deletes old recordings with all their rows, for good.

    Example: flerm db prune --older-than 90 --status failed --db sqlite:///runs.db
    """
    with _one_sentence(), _Database(db) as database:
        count, rows = database.prune(older_than, family, status, dry_run)
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {count} recordings with {rows} rows")


class _Database:
    """The database at a URL, for one command. SQLite files are made only by `upgrade`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> _Database:
        from flerm_server.store.engine import open_engine, parse_url

        self._engine = open_engine(parse_url(self._url))
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()

    def upgrade(self) -> tuple[SchemaState, SchemaState]:
        from flerm_server.store import schema

        return schema.upgrade(self._engine)

    def state(self) -> SchemaState:
        from flerm_server.store import schema

        self._must_exist()
        return schema.state(self._engine)

    def check(self) -> SchemaState:
        from flerm_server.store import schema

        self._must_exist()
        return schema.check(self._engine)

    def backup(self, destination: Path) -> Path:
        from flerm_server.store import schema

        self._must_exist()
        return schema.backup(self._engine, destination)

    def prune(self, days: float, family: str, status: str, dry_run: bool) -> tuple[int, int]:
        from datetime import timedelta

        from flerm_core.recording import RecordingFilter, now
        from flerm_server.store.sql import open_store

        self._must_exist()
        store = open_store(self._url)
        try:
            before = now() - timedelta(days=days)
            filters = RecordingFilter(family=family, status=status, created_before=before)
            # The whole list first: pages are cut by keys that deleting leaves, but statuses lapse meanwhile.
            old = [each for each in store.all_recordings(filters) if each.updated_at < before]
            rows = sum(each.rows if dry_run else store.delete(each.spec.id) for each in old)
        finally:
            store.close()
        return len(old), rows

    def _must_exist(self) -> None:
        from flerm_core.errors import NotFound
        from flerm_server.store.engine import database_file

        if self._engine.dialect.name == "sqlite" and not database_file(self._engine.url).exists():
            raise NotFound(f"db {self._url}: there is no such file; `flerm serve` or `flerm db upgrade` makes it")


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turns an error of ours into its sentence on stderr and its exit code."""
    try:
        yield
    except FlermError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
