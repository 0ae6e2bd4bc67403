"""`python -m flerm_server.cli`: the server's commands alone."""

from __future__ import annotations

from flerm_server.cli import app

if __name__ == "__main__":
    app()
