"""The server's commands of `flerm`: serve, db, token."""

from __future__ import annotations

import typer

from flerm_server.cli import db, token
from flerm_server.cli.serve import serve

# No callback: typer warns of a callback where the app is merged into `flerm`.
app = typer.Typer(
    help="The server of the FLeRM registry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # which show local variables, a database's password among them
)
app.command()(serve)
app.add_typer(db.app, name="db")
app.add_typer(token.app, name="token")
