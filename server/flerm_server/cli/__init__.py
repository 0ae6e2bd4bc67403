"""The server's commands of `flerm`: serve, and what keeps its database and its tokens."""

from __future__ import annotations

import typer

from flerm_server.cli import db, token
from flerm_server.cli.serve import serve

# No callback: typer warns of one where the app is merged into `flerm`.
app = typer.Typer(help="The FLeRM registry's server.", no_args_is_help=True, add_completion=False)
app.command()(serve)
app.add_typer(db.app, name="db")
app.add_typer(token.app, name="token")
