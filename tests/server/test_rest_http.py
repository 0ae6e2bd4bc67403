"""How HTTP is spoken: compression, caching, headers that keep a browser safe, other sites, events and their end."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import httpx
import plotly
import pytest

from flerm_core.recording import Ending
from flerm_server.rest.live import POLL_SECONDS
from flerm_server.serve import Server
from flerm_server.settings import Address, Settings
from tests.server.conftest import Backend, serve
from tests.server.given import batch, family, rows, spec


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


def test_text_is_gzipped_and_parquet_is_not(backend: Backend, http: httpx.Client):
    url = f"/api/v1/recordings/{running(backend)}/trajectory"
    assert http.get(f"{url}?format=csv").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in http.get(f"{url}?format=parquet").headers
    assert "content-encoding" not in http.get(f"{url}?format=csv", headers={"Accept-Encoding": "identity"}).headers


def test_plotly_is_the_installed_one_and_is_kept_for_ever(http: httpx.Client):
    with http.stream("GET", "/static/plotly.min.js") as answer:
        packed = b"".join(answer.iter_raw())
    installed = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    assert gzip.decompress(packed) == installed.read_bytes()
    assert answer.headers["cache-control"] == "no-cache"
    version = answer.headers["etag"].removeprefix('W/"').removesuffix('"')
    kept = http.get(f"/static/plotly.min.js?v={version}")
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert http.get("/static/plotly.min.js", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert http.get("/static/..%2Fpages.py").status_code == 404


def test_browsers_are_told_to_load_nothing_from_outside(http: httpx.Client):
    for path in ("/", "/docs", "/api/v1/families", "/static/registry.css"):
        headers = http.get(path).headers
        assert "default-src 'none'; script-src 'self';" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"


def test_other_sites_may_read_only_where_they_are_named(tmp_path):
    site = "https://dash.example"
    settings = Settings(
        db=f"sqlite:///{tmp_path}/cors.db", grpc=Address("127.0.0.1", 0), http=Address("127.0.0.1", 0), allowed_origins=(site,)
    )
    server = Server(settings)
    server.start()
    try:
        url = f"http://{server.http_address.text}/api/v1/families"
        assert httpx.get(url, headers={"Origin": site}).headers["access-control-allow-origin"] == site
        assert httpx.get(url, headers={"Origin": "https://evil.example"}).status_code == 403
    finally:
        server.stop()


def test_without_a_name_no_other_site_is_answered(http: httpx.Client):
    assert http.get("/api/v1/families", headers={"Origin": "https://dash.example"}).status_code == 403
    assert "access-control-allow-origin" not in http.get("/api/v1/families").headers


def events(lines) -> list[tuple[str, dict]]:
    names = {"rows", "end"}
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
    found = serve(f"sqlite:///{tmp_path}/registry.db")
    backend = next(found)
    url = f"http://{backend.server.http_address.text}/api/v1/recordings/{running(backend)}/events"
    with httpx.stream("GET", url, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: rows"
        started = time.perf_counter()
        next(found, None)  # stops the server
        assert not [line for line in lines if line.startswith("event: ")]
        # Its drain time is 2 s: streams that had to be waited for would take that long.
        assert time.perf_counter() - started < 2 + POLL_SECONDS
