"""The pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from flerm_core.recording import RecordingFilter
from flerm_server.store.base import Store
from flerm_server.version import version

templates = Jinja2Templates(directory=Path(__file__).parent / "templates")


def router(store: Store) -> APIRouter:
    """The pages on `store`."""
    web = APIRouter(include_in_schema=False)

    @web.get("/", response_class=HTMLResponse)
    def index(
        request: Request, family: str = "", after: str = "", families_after: Annotated[str, Query()] = ""
    ) -> HTMLResponse:
        """Families and recordings, newest first."""
        content = {
            "version": version(),
            "family": family,
            "families": store.families(page_token=families_after),
            "recordings": store.recordings(RecordingFilter(family=family), page_token=after),
        }
        return templates.TemplateResponse(request, "index.html", content)

    return web
