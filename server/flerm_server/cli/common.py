"""What the server's commands share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from flerm_core.errors import FlermError, NotFound, Refused

if TYPE_CHECKING:
    import sqlalchemy as sa

# A password in the user's part of a URL, or as an option.
_PASSWORD = re.compile(r"//[^/@]*:[^@]*@|\bpassword=")


def _without_password(context: typer.Context, option: typer.CallbackParam, url: str) -> str:
    """`url`, with a warning where it is on the command line and has a password."""
    source = context.get_parameter_source(option.name or "")
    if source is None or source.name != "COMMANDLINE" or not _PASSWORD.search(url):
        return url
    from flerm_server.store.sql.database_url import parse_url

    with suppress(FlermError):  # of a URL that is none the command itself says so
        parse_url(url)
        typer.echo(
            "Warning: --db has a password, and every user of this host can read command lines: "
            "set FLERM_DB instead, or keep the password in ~/.pgpass",
            err=True,
        )
    return url


Db = Annotated[
    str,
    typer.Option(
        help="sqlite:///FILE or postgresql://USER@HOST/DATABASE",
        envvar="FLERM_DB",
        show_envvar=True,
        callback=_without_password,
    ),
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
    """Turns a `FlermError` in the block into its sentence on stderr and its exit code.

    So is an error of the operating system: a full disk, a missing right, a path that is none.
    """
    try:
        yield
    except FlermError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        typer.echo(f"Error: {named}{error.strerror or error}", err=True)
        raise typer.Exit(Refused.exit_code) from None
