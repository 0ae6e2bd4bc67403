"""What the first page of families shows is computed after a start, before anybody asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flerm_server.presence import current_presence
from flerm_server.reading_ahead import ReadingAhead
from flerm_server.store import queries
from flerm_server.store.interface import Page
from flerm_server.store.sql.store import SqlStore, open_store
from tests.server.samples import family, spec
from tests.support.waiting import until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(f"sqlite:///{tmp_path}/registry.db")
    yield opened
    opened.close()


def test_the_report_of_a_family_is_there_before_it_is_asked_for(store: SqlStore):
    name = family()
    store.start(spec(family=name))
    ahead = ReadingAhead(store, 30)
    ahead.start()
    answers = store.family_runs(name).answers

    class Unasked(Exception):
        pass

    def is_there() -> bool:
        def missing() -> None:
            raise Unasked

        try:
            return answers.get(("transfer", ()), missing) == queries.transfer(store, name)
        except Unasked:
            return False

    until(is_there, "the report is not read ahead")
    ahead.stop()


def test_a_stop_ends_the_reading(store: SqlStore, monkeypatch: pytest.MonkeyPatch):
    began, left = threading.Event(), threading.Event()

    def families(*_: object, **__: object) -> Page[object]:
        with current_presence().calling(left.set):
            began.set()
            left.wait()
            current_presence().require()
        return Page(())

    monkeypatch.setattr(SqlStore, "families", families)
    ahead = ReadingAhead(store, 30)
    ahead.start()
    began.wait()
    ahead.stop()
    assert left.is_set()


def test_a_reading_that_was_not_begun_can_be_stopped(store: SqlStore):
    ReadingAhead(store, 30).stop()
