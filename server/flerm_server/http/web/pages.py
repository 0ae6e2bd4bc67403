"""The pages that show what is recorded. Each has an address that can be sent to a colleague."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse

from flerm_core.records.queries import RecordingFilter
from flerm_core.tuning.transfer_words import base_words, transfer_words
from flerm_server.http.authentication import wants_page
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.figure_selection import Picks, recording_ids
from flerm_server.http.kept_answers import KeptAnswersDep, kept_response
from flerm_server.http.web.family_view import (
    Filters,
    differences,
    filter_choices,
    filters_of,
    recording_table,
)
from flerm_server.http.web.glossary import WORDS
from flerm_server.http.web.templating import Pages, PagesDep, PublicAddressDep
from flerm_server.store import queries
from flerm_server.store.interface import Store

PAGE_FAMILIES = 30  # each with its transfer report

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
    families = store.families(prefix=q.strip(), page_size=PAGE_FAMILIES, page_token=after)
    newest = store.recordings(RecordingFilter(), page_size=8)
    return pages.page(
        "index.html",
        request,
        families=queries.family_summaries(store, families.items),
        next_token=families.next_token,
        newest=newest.items,
        q=q,
        registry=address.url(request),
    )


@web.get("/families/{name:path}")
def family(
    store: StoreDep,
    pages: PagesDep,
    address: PublicAddressDep,
    kept: KeptAnswersDep,
    filters: Annotated[Filters, Depends(filters_of)],
    pick: Picks,
    request: Request,
    name: str,
    show: str = "base/plain",
    scale: str = "",
) -> Response:
    """One family: which rate to use, whether it carried over, coverage and recordings.

    filters: the rows and columns of the table. pick: which experiment, as in REST. show: the
    role/variant whose coverage is shown. scale: the setting whose curves are shown.
    """

    def draw() -> bytes:
        content = _family_content(store, name, pick, filters, show, scale)
        page = pages.page("family.html", request, registry=address.url(request), **content)
        return bytes(page.body)

    return kept_response(kept, request, lambda: store.family_runs(name).version, draw, "text/html")


def _family_content(
    store: Store, name: str, pick: Mapping[str, str], filters: Filters, show: str, scale: str
) -> dict[str, Any]:
    """What the template of a family's page reads; the arguments are those of `family`."""
    overview = queries.family_overview(store, name, pick)
    counts = {"/".join(kind): count for kind, count in overview.counts.items()}
    coverage = {"/".join(kind): cells for kind, cells in overview.coverage.items()}
    shown = show if show in counts else next(iter(counts), "")
    report = overview.report
    dimension = scale if scale in report.dimensions else next(iter(report.dimensions), "")
    # What is shown, which may differ from what was asked: REST answers no other question.
    kinds = [kind for kind in report.kinds if kind.name in pick]
    picked = [("pick", f"{kind.name}={kind.labels[kind.shown]}") for kind in kinds]
    return {
        "family": overview.family,
        "report": report,
        "dimension": dimension,
        "panels": len(report.panels(dimension)),
        "carried": transfer_words(report),
        "advice": base_words(report.best) if report.best else "",
        "picked": urlencode(picked),
        "asked": urlencode([*picked, ("scale", dimension)]),
        "counts": counts,
        "shown": shown,
        "coverage": coverage.get(shown),
        "table": recording_table(store, overview, filters),
        "filters": filters,
        "choices": filter_choices(overview),
    }


@web.get("/compare")
def compare(
    store: StoreDep,
    pages: PagesDep,
    request: Request,
    ids: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
    raw: bool = False,
) -> HTMLResponse:
    """Recordings beside each other: how far the updates of each one move the outputs, over the
    targets that the first one gives.

    raw: FSLRs at learning rate 1 instead.
    """
    recordings = queries.named_recordings(store, recording_ids(ids))
    return pages.page(
        "compare.html",
        request,
        recordings=recordings,
        scales=queries.model_scales(store, recordings),
        differences=differences(recordings),
        raw=raw,
    )


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
