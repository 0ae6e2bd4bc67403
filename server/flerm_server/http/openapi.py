"""`python -m flerm_server.http.openapi` writes docs/openapi.json and the routes of docs/rest.md."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http.app import create_app
from flerm_server.http.rest_reference import with_routes
from flerm_server.metrics import Metrics
from flerm_server.store.sql.store import open_store

DOCUMENT = Path("docs/openapi.json")
REFERENCE = Path("docs/rest.md")


def document() -> dict[str, Any]:
    """The OpenAPI document of this tree.

    Its version is always v1: the distribution's version changes with every release, and says
    nothing about the contract.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{folder}/empty.db")
        try:
            app = create_app(
                AuthorizedStore(store),
                Authenticator(SqlTokenStore(store.engine)),
                Metrics(),
                local_only=True,
            )
            found: dict[str, Any] = app.openapi()
        finally:
            store.close()
    return {**found, "info": {**found["info"], "version": "v1"}}


def as_text(content: dict[str, Any]) -> str:
    """The document as the file has it: keys are sorted, so that two versions can be compared."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    made = document()
    DOCUMENT.write_text(as_text(made))
    REFERENCE.write_text(with_routes(REFERENCE.read_text(), made))
