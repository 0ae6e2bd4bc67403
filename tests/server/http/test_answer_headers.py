"""Headers of every answer, also to errors, and HEAD wherever GET is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from starlette.testclient import TestClient

from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http.app import create_app
from flerm_server.metrics import Metrics
from flerm_server.store.sql.store import open_store
from tests.server.conftest import Backend, serve
from tests.server.http.answers import recorded
from tests.server.samples import family, spec


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('headers')}/registry.db")


@pytest.fixture
def http(backend: Backend) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def assert_guarded(headers: httpx.Headers) -> None:
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    for name in ("content-security-policy", "x-content-type-options", "referrer-policy"):
        assert len(headers.get_list(name)) == 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/docs", {}, 200),
        ("GET", "/docs/assets/swagger-ui.css", {}, 200),
        ("GET", "/docs/assets/none", {}, 404),
        ("GET", "/static/registry.css", {}, 200),
        ("GET", "/static/none", {}, 404),
        ("GET", "/healthz", {}, 200),
        ("GET", "/api/v1/families", {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("GET", "/nowhere", {"Accept": "text/html"}, 404),
        ("GET", "/match/", {}, 307),
        ("DELETE", "/api/v1/families", {}, 405),
        ("GET", "/", {"Host": "evil.example"}, 400),
        ("GET", "/", {"Origin": "https://evil.example"}, 403),
        ("POST", "/login", {"Content-Length": "9999999"}, 413),
    ],
)
def test_every_answer_is_guarded(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], status: int
):
    content = b"x" * 9999999 if status == 413 else None
    answer = http.request(method, path, headers=headers, content=content)
    assert answer.status_code == status
    assert_guarded(answer.headers)
    kept = path.startswith(("/static/registry", "/docs/assets/swagger"))
    assert (answer.headers.get("cache-control") == "no-store") is not kept
    assert "strict-transport-security" not in answer.headers


def test_what_is_no_http_is_answered_with_them_too(http: httpx.Client):
    with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        head, _, body = b"".join(iter(lambda: raw.recv(4096), b"")).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status.startswith("HTTP/1.1 400") and b'"status":400' in body
    assert_guarded(httpx.Headers([tuple(line.split(": ", 1)) for line in lines]))


@pytest.mark.parametrize("accept", ["text/html", "*/*"])
def test_a_bug_is_answered_with_them_and_with_its_id(tmp_path: Path, accept: str, monkeypatch):
    store = open_store(f"sqlite:///{tmp_path}/registry.db")
    authorized = AuthorizedStore(store)

    def bug(**_: object) -> None:
        raise ValueError("bug")

    monkeypatch.setattr(authorized, "families", bug)
    app = create_app(
        authorized, Authenticator(SqlTokenStore(store.engine)), Metrics(), local_only=False
    )
    client = TestClient(app, raise_server_exceptions=False)
    with structlog.testing.capture_logs():
        answer = client.get("/", headers={"Accept": accept})
    assert answer.status_code == 500
    assert f"its log has it as request {answer.headers['x-request-id']}" in answer.text
    assert_guarded(answer.headers)
    store.close()


def test_head_is_answered_wherever_get_is(backend: Backend, http: httpx.Client):
    name = family()
    ended = recorded(backend, name)
    running = spec(name)
    backend.local.start(running)
    for path in ("/healthz", "/readyz", "/metrics", "/", "/match", "/docs", "/openapi.json",
                 "/static/plotly.min.js", "/docs/assets/swagger-ui.css", f"/families/{name}",
                 f"/recordings/{ended}", f"/compare?ids={ended}", "/login", "/nowhere",
                 "/api/v1/families", f"/api/v1/families/{name}/figure",
                 f"/api/v1/recordings/{ended}", f"/api/v1/recordings/{ended}/trajectory",
                 f"/api/v1/recordings/{ended}/events"):  # fmt: skip
        got, headed = http.get(path), http.head(path)
        assert (headed.status_code, headed.content) == (got.status_code, b""), path
        for header in ("content-type", "cache-control", "etag", "location"):
            assert headed.headers.get(header) == got.headers.get(header), path
    # The answer ends, and the stream with it, though the recording goes on.
    events = http.head(f"/api/v1/recordings/{running.id}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    assert http.head("/api/v1/match").status_code == 405
