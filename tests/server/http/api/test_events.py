"""Server-sent events of a running recording."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from flerm_core.records.recording import Ending
from tests.server.conftest import Backend, serve
from tests.server.samples import batch, family, rows, spec


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory):
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('http')}/registry.db")


@pytest.fixture
def http(backend: Backend):
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def running(backend: Backend) -> str:
    sent = spec(family())
    backend.local.start(sent)
    backend.local.append_many([batch(sent.id, *rows(*range(1, 100)))])
    return sent.id


def events(lines) -> list[tuple[str, dict]]:
    names = {"rows", "end", "failure"}
    found, name = [], ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
            assert name in names
        elif line.startswith("data: "):
            found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def test_events_tell_of_the_end_and_stop(backend: Backend, http: httpx.Client):
    recording = running(backend)
    backend.local.finish(recording, 0, Ending(final_loss=0.5))
    state = {"status": "completed", "rows": 99, "last_step": 99, "final_loss": 0.5}
    with http.stream("GET", f"/api/v1/recordings/{recording}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert events(answer.iter_lines()) == [("rows", state), ("end", state)]


def test_a_server_that_stops_ends_its_event_streams_at_once(tmp_path):
    found = serve(f"sqlite:///{tmp_path}/registry.db", drain_seconds=40.0)
    backend = next(found)
    url = f"http://{backend.server.http_address.text}/api/v1/recordings/{running(backend)}/events"
    with httpx.stream("GET", url, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: rows"
        started = time.perf_counter()
        next(found, None)  # stops the server
        assert not [line for line in lines if line.startswith("event: ")]
        assert time.perf_counter() - started < 20.0, "it would wait for the drain time"


def test_a_stream_that_loses_its_database_does_not_tell_where_that_was(tmp_path):
    found = serve(f"sqlite:///{tmp_path}/registry.db")
    backend = next(found)
    url = f"http://{backend.server.http_address.text}/api/v1/recordings/{running(backend)}/events"
    with httpx.stream("GET", url, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: rows"
        (tmp_path / "registry.db").rename(tmp_path / "gone.db")
        name, content = events(lines)[-1]
    assert (name, str(tmp_path) in content["detail"]) == ("failure", False)
    next(found, None)
