"""The pages, each a plain function of its address."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from flerm_core.errors import InvalidInput
from flerm_core.records.queries import RecordingFilter
from flerm_core.records.recording import FINAL_STATUSES
from flerm_server.http.api.figures import MAX_COMPARED
from flerm_server.http.authentication import wants_page
from flerm_server.http.trajectory_loading import load_selection, matching_names
from flerm_server.http.web.family_view import (
    Filters,
    rate_advice,
    role_variant_counts,
    seed_coverage,
)
from flerm_server.http.web.templating import Pages, PublicAddress
from flerm_server.store.interface import Store

MAX_LISTED = 2000  # tensors in a page's table; the rest is in its data


def router(store: Store, pages: Pages, door: PublicAddress) -> APIRouter:
    """The pages on `store`. `door`: what commands on them name as the registry's address."""
    web = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @web.get("/")
    def index(request: Request, after: str = "", q: str = "") -> HTMLResponse:
        """Families by name, and the newest recordings."""
        families = store.families(prefix=q.strip(), page_token=after)
        newest = store.recordings(RecordingFilter(), page_size=8)
        return pages.page(
            "index.html",
            request,
            families=families,
            newest=newest.items,
            q=q,
            registry=door.address(request),
        )

    @web.get("/families/{name:path}")
    def family(
        request: Request,
        name: str,
        role: str = "",
        variant: str = "",
        status: str = "",
        lr_min: str = "",
        lr_max: str = "",
        after: str = "",
        show: str = "base/plain",
    ) -> HTMLResponse:
        """One family: its best rate, losses, coverage and recordings."""
        found = store.family(name)
        everything = list(store.all_recordings(RecordingFilter(family=name)))
        counts = role_variant_counts(everything)
        shown = show if show in counts else next(iter(counts), "")
        filters = Filters(role, variant, status, lr_min, lr_max)
        page = store.recordings(filters.of(name), page_size=50, page_token=after)
        return pages.page(
            "family.html",
            request,
            family=found,
            advice=rate_advice(everything, name),
            role_variants=counts,
            shown=shown,
            coverage=seed_coverage(everything, shown),
            recordings=page,
            filters=filters,
            choices=Filters.choices(everything),
            registry=door.address(request),
        )

    @web.get("/recordings/{recording_id}")
    def recording(request: Request, recording_id: str, pattern: str = "") -> HTMLResponse:
        """One recording: its FSLRs, loss and learning rate, and its tensors."""
        ends = load_selection(store, store.select(recording_id, max_points=2))
        found = store.recording(recording_id)
        tensors = [
            (
                name,
                band,
                shape,
                float(ends.values[0, at]) if len(ends) else None,
                float(ends.values[-1, at]) if len(ends) else None,
            )
            for at, (name, band, shape) in enumerate(
                zip(ends.names, ends.bands, ends.shapes, strict=True)
            )
        ]
        return pages.page(
            "recording.html",
            request,
            recording=found,
            spec=found.spec,
            running=found.status not in FINAL_STATUSES,
            pattern=pattern.strip(),
            drawn=matching_names(ends.names, pattern.strip()),
            tensors=tensors[:MAX_LISTED],
            steps=ends.steps.tolist(),
        )

    @web.get("/compare")
    def compare(request: Request, ids: Annotated[list[str], Query()] = []) -> HTMLResponse:  # noqa: B006
        """Recordings beside each other: each one's FSLRs over the targets that the first would give."""
        wanted = list(
            dict.fromkeys(each.strip() for text in ids for each in text.split(",") if each.strip())
        )
        if len(wanted) > MAX_COMPARED:
            raise InvalidInput(
                f"ids: {len(wanted)} recordings chosen; at most {MAX_COMPARED} are compared at once"
            )
        return pages.page(
            "compare.html", request, recordings=[store.recording(each) for each in wanted]
        )

    return web


class ErrorPage:
    """An error as a page, for who asks for pages."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def wanted(self, request: Request) -> bool:
        """Whether a browser asks, and not for data."""
        return wants_page(request.url.path, request.headers.get("accept", ""))

    def __call__(self, request: Request, status: int, sentence: str) -> HTMLResponse:
        """The page."""
        return self._pages.page(
            "error.html", request, status=status, code=status, sentence=sentence
        )
