"""`flerm token`: create, list and revoke tokens.

The commands work on the database, so they run where the server's database can be reached. Running
servers see the change with the next call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from flerm_server.cli.common import Db, database, one_sentence
from flerm_server.settings import DEFAULT_DB

if TYPE_CHECKING:
    from flerm_server.auth.sql_tokens import SqlTokenStore, Token

app = typer.Typer(no_args_is_help=True, help="Tokens: create, list, revoke.")


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(help="Whose token it is; recordings made with the token name it")
    ],
    scope: Annotated[str, typer.Option(help="read, write (reading too) or admin (everything)")],
    family: Annotated[
        str,
        typer.Option(help="Bind the token to this family, or to this team with all its families"),
    ] = "",
    db: Db = DEFAULT_DB,
) -> None:
    """Creates a token and shows it once: the database keeps only its digest.

    Once a registry has had a token, it refuses every call without one.

    Example: flerm token create vision-jobs --scope write --family vision --db sqlite:///runs.db
    """
    with one_sentence(), _tokens(db, create=True) as tokens:
        _, secret = tokens.create(name, scope, family)
        typer.echo(secret.text)


@app.command("list")
def list_(
    db: Db = DEFAULT_DB,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON for programs instead of a table")
    ] = False,
) -> None:
    """Lists all tokens that were ever created, without their secrets.

    Example: flerm token list --db sqlite:///runs.db
    """
    with one_sentence(), _tokens(db) as tokens:
        found = [_as_json(each) for each in tokens.list()]
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for each in found:
        bound = f"  family {each['family']}" if each["family"] else ""
        ended = f"  revoked {each['revoked_at']}" if each["revoked_at"] else ""
        typer.echo(
            f"{each['id']}  {each['scope']:5}  {each['name']}{bound}  "
            f"made {each['created_at']}{ended}"
        )
    if not found:
        typer.echo("no tokens: a registry on 127.0.0.1 answers everybody on this host")


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, as `flerm token list` shows it")],
    db: Db = DEFAULT_DB,
) -> None:
    """Revokes a token at once, on all servers of the database, and ends every login made with it.

    Example: flerm token revoke 3f9a1c0b7d21 --db sqlite:///runs.db
    """
    with one_sentence(), _tokens(db) as tokens:
        typer.echo(
            f"token {token} " + ("revoked" if tokens.revoke(token) else "was revoked already")
        )


def _as_json(token: Token) -> dict[str, str | None]:
    return {
        "id": token.id,
        "name": token.name,
        "scope": token.scope.text,
        "family": token.family,
        "created_at": token.created_at.isoformat(timespec="seconds"),
        "revoked_at": token.revoked_at.isoformat(timespec="seconds") if token.revoked_at else None,
    }


@contextmanager
def _tokens(url: str, *, create: bool = False) -> Iterator[SqlTokenStore]:
    from flerm_server.auth.sql_tokens import SqlTokenStore
    from flerm_server.store.sql import schema

    # The first token may be created before the server's first start: then this command creates the
    # SQLite file, as `flerm serve` does.
    with database(url, must_exist=not create) as engine:
        if create and engine.dialect.name == "sqlite":
            schema.upgrade(engine)
        schema.check(engine)
        yield SqlTokenStore(engine)
