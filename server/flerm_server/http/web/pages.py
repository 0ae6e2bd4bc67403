"""The pages that show what is recorded. Each has an address that can be sent to a colleague."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse

from flerm_core.records.queries import RecordingFilter
from flerm_server.http.authentication import wants_page
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.figure_selection import recording_ids
from flerm_server.http.web.family_view import Filters, filter_choices
from flerm_server.http.web.glossary import WORDS
from flerm_server.http.web.templating import Pages, PagesDep, PublicAddressDep
from flerm_server.store import queries

web = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@web.get("/")
@web.get("/families")
def index(
    store: StoreDep,
    pages: PagesDep,
    address: PublicAddressDep,
    request: Request,
    after: str = "",
    q: str = "",
) -> HTMLResponse:
    """Families by name, and the newest recordings.

    after: the page token of the families to begin with. q: how a family's name begins.
    """
    families = store.families(prefix=q.strip(), page_token=after)
    newest = store.recordings(RecordingFilter(), page_size=8)
    return pages.page(
        "index.html",
        request,
        families=families,
        newest=newest.items,
        q=q,
        registry=address.url(request),
    )


@web.get("/families/{name:path}")
def family(
    store: StoreDep,
    pages: PagesDep,
    address: PublicAddressDep,
    filters: Annotated[Filters, Depends()],
    request: Request,
    name: str,
    after: str = "",
    show: str = "base/plain",
) -> HTMLResponse:
    """One family: its best rate, its losses, its coverage and its recordings.

    filters: which recordings the table has. after: the page token of the recordings to begin with.
    show: the role/variant whose coverage is shown.
    """
    overview = queries.family_overview(store, name)
    counts = {"/".join(kind): count for kind, count in overview.counts.items()}
    coverage = {"/".join(kind): cells for kind, cells in overview.coverage.items()}
    shown = show if show in counts else next(iter(counts), "")
    recordings = store.recordings(filters.parse(name), page_size=50, page_token=after)
    return pages.page(
        "family.html",
        request,
        family=overview.family,
        advice=overview.advice,
        counts=counts,
        shown=shown,
        coverage=coverage.get(shown),
        recordings=recordings,
        filters=filters,
        choices=filter_choices(overview),
        registry=address.url(request),
    )


@web.get("/compare")
def compare(
    store: StoreDep,
    pages: PagesDep,
    request: Request,
    ids: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
) -> HTMLResponse:
    """Recordings beside each other: each one's FSLRs over the targets that the first one gives."""
    recordings = [store.recording(each) for each in recording_ids(ids)]
    return pages.page("compare.html", request, recordings=recordings)


@web.get("/glossary")
def glossary(pages: PagesDep, request: Request) -> HTMLResponse:
    """The words of the pages."""
    return pages.page("glossary.html", request, words=WORDS)


@web.get("/docs")
def docs(pages: PagesDep, request: Request) -> HTMLResponse:
    """Every REST route, drawn from /openapi.json."""
    return pages.page("docs.html", request)


class ErrorPage:
    """An error as a page, for a browser that asked for a page."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def wanted(self, request: Request) -> bool:
        """Whether the request is a browser's for a page, and not for data."""
        return wants_page(request.url.path, request.headers.get("accept", ""))

    def __call__(self, request: Request, status: int, sentence: str) -> HTMLResponse:
        """The page."""
        return self._pages.page(
            "error.html", request, status=status, code=status, sentence=sentence
        )
