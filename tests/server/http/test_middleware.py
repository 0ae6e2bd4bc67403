"""What every HTTP request passes: Host and Origin, headers, compression, metrics."""

from __future__ import annotations

import base64
import socket

import httpx
import pytest

from flerm_core.records.recording import Ending
from flerm_server.server import Server
from flerm_server.settings import ListenAddress, Settings
from tests.server.conftest import Backend, serve
from tests.server.http.answers import problem
from tests.server.samples import batch, family, rows, spec


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory):
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('http')}/registry.db")


@pytest.fixture
def http(backend: Backend):
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def test_only_this_host_is_answered(http: httpx.Client):
    assert (
        "evil.example"
        in problem(http.get("/api/v1/families", headers={"Host": "evil.example"}), 400)["detail"]
    )
    assert (
        "evil.example"
        in problem(http.get("/", headers={"Origin": "https://evil.example"}), 403)["detail"]
    )
    assert http.get("/api/v1/families", headers={"Host": "localhost:1"}).status_code == 200


def running(backend: Backend) -> str:
    sent = spec(family())
    backend.local.start(sent)
    backend.local.append_many([batch(sent.id, *rows(*range(1, 100)))])
    return sent.id


def test_text_is_gzipped_and_parquet_is_not(backend: Backend, http: httpx.Client):
    url = f"/api/v1/recordings/{running(backend)}/trajectory"
    assert http.get(f"{url}?format=csv").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in http.get(f"{url}?format=parquet").headers
    assert (
        "content-encoding"
        not in http.get(f"{url}?format=csv", headers={"Accept-Encoding": "identity"}).headers
    )


@pytest.mark.parametrize(
    ("accept", "zipped"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("br, *", True),
        ("gzip;q=0", False),
        ("gzip ; q=0.000, identity", False),
        ("identity, gzip;q=0.5", False),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("notgzip", False),
        ("gzip;q=1.1.1", False),
        ("", False),
    ],
)
def test_gzip_goes_to_those_who_take_it(
    backend: Backend, http: httpx.Client, accept: str, zipped: bool
):
    sent = spec(family())
    backend.local.start(sent)
    backend.local.append_many([batch(sent.id, *rows(1, 2))])
    backend.local.finish(sent.id, 0, Ending(final_loss=0.5))
    for path in (
        "/",
        f"/families/{sent.family}",
        f"/api/v1/families/{sent.family}/figure",
        "/api/v1/recordings",
        "/static/registry.css",
    ):
        headers = http.get(path, headers={"Accept-Encoding": accept}).headers
        assert (headers.get("content-encoding") == "gzip") == zipped, path
        assert "Accept-Encoding" in headers["vary"], path


def test_a_health_check_by_http_1_0_needs_no_host(backend: Backend):
    host, _, port = backend.server.http_address.text.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200") and b'"status":"ready"' in answer


def test_browsers_are_told_to_load_nothing_from_outside(http: httpx.Client):
    for path in ("/", "/docs", "/api/v1/families", "/static/registry.css"):
        headers = http.get(path).headers
        assert "default-src 'none'; script-src 'self';" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"


def test_other_sites_may_read_only_where_they_are_named(tmp_path):
    site = "https://dash.example"
    settings = Settings(
        db=f"sqlite:///{tmp_path}/cors.db",
        grpc=ListenAddress("127.0.0.1", 0),
        http=ListenAddress("127.0.0.1", 0),
        allowed_origins=(site,),
    )
    server = Server(settings)
    server.start()
    try:
        url = f"http://{server.http_address.text}/api/v1/families"
        assert (
            httpx.get(url, headers={"Origin": site}).headers["access-control-allow-origin"] == site
        )
        assert httpx.get(url, headers={"Origin": "https://evil.example"}).status_code == 403
    finally:
        server.stop()


def test_without_a_name_no_other_site_is_answered(http: httpx.Client):
    assert (
        http.get("/api/v1/families", headers={"Origin": "https://dash.example"}).status_code == 403
    )
    assert "access-control-allow-origin" not in http.get("/api/v1/families").headers


def test_a_method_of_a_callers_making_makes_no_metric(http: httpx.Client):
    assert http.request("MADEUP1", "/api/v1/families").status_code == 405
    assert http.request("MADEUP2", "/nowhere").status_code == 404
    assert "MADEUP" not in http.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (
            "/api/v1/recordings",
            {"page_token": base64.urlsafe_b64encode(b"9" * 5000 + b"\n1").decode()},
        ),
        (
            "/api/v1/recordings",
            {"page_token": base64.urlsafe_b64encode(b"1\n" + b"9" * 20).decode()},
        ),
        ("/match", {"lr": "1e-3", "step": "9" * 5000}),
        ("/match", {"lr": "1e-3", "tensors": "layers.0.weight 1" + "0" * 400}),
        ("/match", {"lr": "1e-3", "tensors": "layers.0.weight " + "[" * 5000}),
        ("/match", {"lr": "1e-3", "tensors": '{"layers.0.weight": ' + "[" * 5000}),
    ],
)
def test_numbers_and_nesting_without_end_are_refused(
    backend: Backend, http: httpx.Client, path: str, asked: dict[str, str]
):
    sent = spec(family())
    backend.local.start(sent)
    backend.local.append_many([batch(sent.id, *rows(1, 2))])
    backend.local.finish(sent.id, 0, Ending(final_loss=0.5))
    assert http.get(path, params={"family": sent.family} | asked).status_code == 422


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"])
def test_recordings_are_found_from_the_calendars_first_day_to_its_last(
    http: httpx.Client, moment: str
):
    assert (
        http.get("/api/v1/recordings", params={"created_after": moment, "family": family()}).json()[
            "recordings"
        ]
        == []
    )
    answer = http.get("/api/v1/recordings", params={"created_after": moment})
    assert answer.status_code == 200


def test_a_body_of_two_lengths_is_refused_and_ends_the_connection(backend: Backend):
    host, _, port = backend.server.http_address.text.rpartition(":")
    hidden = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"
    head = f"POST /api/v1/match HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(hidden) + 5}\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    assert b"Content-Length and Transfer-Encoding: only one" in answer
