"""What request handlers ask the application for. FastAPI calls these functions for each request."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.metrics import Metrics

# The functions are asynchronous so that FastAPI calls them on the event loop: a plain function
# would cost a thread of the pool for each request.


async def _store(request: Request) -> Any:
    return request.app.state.store


async def _authenticator(request: Request) -> Any:
    return request.app.state.authenticator


async def _metrics(request: Request) -> Any:
    return request.app.state.metrics


StoreDep = Annotated[AuthorizedStore, Depends(_store)]
"""The store, as the principal of this request may use it."""

AuthenticatorDep = Annotated[Authenticator, Depends(_authenticator)]
"""What checks tokens and sessions."""

MetricsDep = Annotated[Metrics, Depends(_metrics)]
"""What this server counts."""
