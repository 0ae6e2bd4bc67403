"""`python -m flerm_server.http.openapi FILE`: the OpenAPI document of this version, as kept in docs/openapi.json."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http.app import create_app
from flerm_server.metrics import Metrics
from flerm_server.store.sql.store import open_store


def document() -> dict[str, Any]:
    """The document, without the version, which changes with every release and says nothing of the contract."""
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
    return {
        **found,
        "info": {key: value for key, value in found["info"].items() if key != "version"}
        | {"version": "v1"},
    }


def as_text(content: dict[str, Any]) -> str:
    """As the file holds it: sorted, so that a difference is a change."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(as_text(document()))
