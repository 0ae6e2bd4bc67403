"""What the server's commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from flerm_core.errors import FlermError, NotFound

if TYPE_CHECKING:
    import sqlalchemy as sa

Db = Annotated[
    str,
    typer.Option(help="sqlite:///FILE or postgresql://USER@HOST/DATABASE", envvar="FLERM_DB"),
]


@contextmanager
def database(url: str, *, must_exist: bool = True) -> Iterator[sa.Engine]:
    """The database at a URL, open as long as the block runs.

    must_exist: raise `NotFound` for a SQLite file that is not there.
    """
    from flerm_server.store.sql.database_url import database_file, parse_url, public_name
    from flerm_server.store.sql.engine import open_engine

    engine = open_engine(parse_url(url))
    try:
        if (
            must_exist
            and engine.dialect.name == "sqlite"
            and not database_file(engine.url).exists()
        ):
            raise NotFound(
                f"db {public_name(engine.url)}: there is no such file; "
                "`flerm serve` or `flerm db upgrade` makes it"
            )
        yield engine
    finally:
        engine.dispose()


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns a `FlermError` in the block into its sentence on stderr and its exit code."""
    try:
        yield
    except FlermError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
