"""`flerm token`: who may ask. Works on the database, on the server's own console; servers that run see it at once."""

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
    name: Annotated[str, typer.Argument(help="Whose it is; recordings made with it say so")],
    scope: Annotated[str, typer.Option(help="read, write (and read) or admin (everything)")],
    family: Annotated[
        str, typer.Option(help="Bind it to this family, or to this team with all its families")
    ] = "",
    db: Db = DEFAULT_DB,
) -> None:
    """Makes a token and shows it, once: only its digest is kept. From the first one on, nobody is answered without.

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
    """Lists all tokens that were ever made, without their secrets.

    Example: flerm token list --db sqlite:///runs.db
    """
    with one_sentence(), _tokens(db) as tokens:
        found = [_plain(each) for each in tokens.list()]
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for each in found:
        bound = f"  family {each['family']}" if each["family"] else ""
        ended = f"  revoked {each['revoked_at']}" if each["revoked_at"] else ""
        typer.echo(
            f"{each['id']}  {each['scope']:5}  {each['name']}{bound}  made {each['created_at']}{ended}"
        )
    if not found:
        typer.echo("no tokens: a registry on 127.0.0.1 answers everybody on this host")


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="The token's id, as `flerm token list` shows it")],
    db: Db = DEFAULT_DB,
) -> None:
    """Revokes a token at once, on all servers of the database, and every login made with it.

    Example: flerm token revoke 3f9a1c0b7d21 --db sqlite:///runs.db
    """
    with one_sentence(), _tokens(db) as tokens:
        typer.echo(
            f"token {token} " + ("revoked" if tokens.revoke(token) else "was revoked already")
        )


def _plain(token: Token) -> dict[str, str | None]:
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

    # The first token may come before the first start: a SQLite file is made, as `flerm serve` would.
    with database(url, must_exist=not create) as engine:
        if create and engine.dialect.name == "sqlite":
            schema.upgrade(engine)
        schema.check(engine)
        yield SqlTokenStore(engine)
