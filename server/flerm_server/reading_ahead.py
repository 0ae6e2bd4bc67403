"""What people ask first after a start is read before they ask."""

from __future__ import annotations

import threading

import structlog

from flerm_core.errors import FlermError
from flerm_server.presence import CallerGone, Presence, work_for
from flerm_server.store import queries
from flerm_server.store.interface import Store

log = structlog.get_logger("flerm.serve")


class ReadingAhead:
    """Computes, beside the calls, what the first page of families shows.

    A server keeps these answers. Without the reading ahead, whoever opens the pages first after a
    start waits for all of them, which takes seconds where families have thousands of recordings.
    """

    def __init__(self, store: Store, families: int) -> None:
        """families: how many the page shows."""
        self._store = store
        self._families = families
        self._presence = Presence()
        self._thread = threading.Thread(target=self._run, name="reading ahead", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the reading. Returns when nothing is read any more."""
        self._presence.end()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        work_for(self._presence)
        try:
            page = self._store.families(page_size=self._families)
            queries.family_summaries(self._store, page.items)
        except CallerGone:
            pass
        except FlermError as error:  # such as a database that is gone: a call will say so, too
            log.info("families were not read ahead", reason=str(error))
        except Exception:  # of one answer; whoever asks for it gets the same
            log.exception("bug", thread=self._thread.name)
