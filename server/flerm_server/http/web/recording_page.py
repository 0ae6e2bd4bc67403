"""The page of one recording: its learning rates, FSLRs, loss and settings."""

from __future__ import annotations

from fnmatch import fnmatchcase

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from flerm_core.errors import NotFound
from flerm_core.matching.matched_rates import NOTES, MatchedRates
from flerm_core.matching.tensor_rate import medians
from flerm_core.records.queries import TrajectoryQuery
from flerm_core.records.recording import FINAL_STATUSES, Recording
from flerm_server.http.dependencies import StoreDep
from flerm_server.http.figure_selection import matching_names
from flerm_server.http.web.templating import PagesDep
from flerm_server.store import queries
from flerm_server.store.interface import Store
from flerm_server.store.peers import peers

# Tensors in the table; the data links have all of them.
MAX_LISTED = 2000
MAX_STEPS = 40  # steps that the table of rates offers

web = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@web.get("/recordings/{recording_id}")
def recording(
    store: StoreDep,
    pages: PagesDep,
    request: Request,
    recording_id: str,
    pattern: str = "",
    step: int | None = None,
) -> HTMLResponse:
    """One recording.

    pattern: the tensors to draw one by one and to list in the table of rates, shell style.
    step: the step of the table of learning rates; None: the last one at which the run was matched.
    """
    found = store.recording(recording_id)
    ends = queries.trajectory(store, TrajectoryQuery(recording_id=recording_id, max_points=2))
    unmeasured = [None] * len(ends.names)
    first = ends.values[0].tolist() if len(ends) else unmeasured
    last = ends.values[-1].tolist() if len(ends) else unmeasured
    tensors = list(zip(ends.names, ends.bands, ends.shapes, first, last, strict=True))
    wanted = pattern.strip()
    return pages.page(
        "recording.html",
        request,
        recording=found,
        spec=found.spec,
        running=found.status not in FINAL_STATUSES,
        scale=queries.model_scales(store, [found])[0],
        pattern=wanted,
        drawn=matching_names(ends.names, wanted),
        most_listed=MAX_LISTED,
        tensors=tensors[:MAX_LISTED],
        steps=ends.steps.tolist(),
        rates=_rates(store, found, step, wanted),
        peers=peers(store, found),
    )


def _rates(
    store: Store, recording: Recording, step: int | None, pattern: str
) -> dict[str, object] | None:
    """What the page shows of a matched run's rates; None: the run was not matched.

    The arguments are those of `recording`. Where no tensor has a name like `pattern`, all are
    listed.
    """
    if recording.spec.variant == "plain" and not recording.spec.targets_sources:
        return None
    try:
        found = queries.matched_rates(store, recording.spec.id, max_points=MAX_STEPS)
    except NotFound:
        return None
    shown = found.match_step if step not in found.steps.tolist() else step
    tensors = found.at(shown)
    return {
        "found": found,
        "step": shown,
        "schedule": float(found.schedule[found.steps.tolist().index(shown)]),
        "bands": medians(tensors),
        "listed": [each for each in tensors if fnmatchcase(each.name, pattern or "*")] or tensors,
        "notes": _notes(found),
    }


def _notes(found: MatchedRates) -> dict[str, list[str]]:
    """The tensors of which there is something to say, by the sentence that says what."""
    said: dict[str, list[str]] = {}
    for name, note in zip(found.parameters.names, found.notes, strict=True):
        if note:
            said.setdefault(NOTES[note], []).append(name)
    return said
