"""The application as a whole: health, metrics, documentation, compression, hostile input."""

from __future__ import annotations

import httpx
import pytest

from flerm_core.errors import InvalidInput, NotFound
from flerm_server.store.sql import schema
from tests.server.conftest import Backend
from tests.server.http.answers import recorded
from tests.server.samples import batch, family, rows, spec


@pytest.fixture
def http(backend: Backend):
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


def test_health_and_metrics(backend: Backend, http: httpx.Client):
    assert http.get("/healthz").json()["status"] == "alive"
    assert http.get("/readyz").json()["schema_revision"] == schema.head()
    sent = spec(family())
    backend.remote.start(sent)
    backend.remote.append_many([batch(sent.id, *rows(1, 2))])
    text = http.get("/metrics").text
    assert 'flerm_calls_total{code="OK",method="Append",protocol="grpc"}' in text
    assert 'flerm_calls_total{code="200",method="GET /readyz",protocol="http"}' in text
    assert "flerm_rows_committed_total" in text


def test_the_api_page_fetches_nothing_from_outside(http: httpx.Client):
    page = http.get("/docs").text
    assert "https://" not in page
    for asset in (
        "/docs/assets/swagger-ui-bundle.js",
        "/docs/assets/swagger-ui.css",
        "/static/registry.css",
        "/static/favicon.svg",
    ):
        assert http.get(asset).status_code == 200
    assert "/api/v1/match" in http.get("/openapi.json").json()["paths"]


def test_no_family_is_called_as_a_route_below_a_family(backend: Backend, http: httpx.Client):
    """`team/best` would be asked for by the address of the best rate of `team`."""
    paths = http.get("/openapi.json").json()["paths"]
    words = {
        path.rpartition("/")[2] for path in paths if path.startswith("/api/v1/families/{name}/")
    }
    assert {"best", "losses", "transfer", "figure"} <= words
    for word in words:
        with pytest.raises(InvalidInput, match=f"'team/{word}' is not allowed"):
            backend.local.register_family(f"team/{word}")
        with pytest.raises(InvalidInput, match=f"'team/{word}' is not allowed"):
            backend.local.rename_family("team/one", f"team/{word}")
        with pytest.raises(NotFound):
            backend.local.rename_family(f"team/{word}", "team/another")


def test_the_first_page_lists_families_and_recordings(backend: Backend, http: httpx.Client):
    name = family()
    backend.local.register_family(name, description="<script>alert(1)</script>")
    recording_id = recorded(backend, name)
    page = http.get("/", params={"family": name})
    assert page.headers["content-type"].startswith("text/html")
    assert recording_id in page.text
    assert "<script>" not in http.get("/").text
