"""The server's commands of `flerm`: serve, and what keeps its database and its tokens."""

from __future__ import annotations

import typer

from flerm_server.cli import db, token
from flerm_server.cli.serve import serve

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.command()(serve)
app.add_typer(db.app, name="db")
app.add_typer(token.app, name="token")


@app.callback()
def root() -> None:
    """The FLeRM registry's server."""
