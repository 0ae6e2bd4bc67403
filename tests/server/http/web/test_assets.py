"""The files that pages load."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx
import plotly
import pytest

from tests.server.conftest import Backend, serve


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory):
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('http')}/registry.db")


@pytest.fixture
def http(backend: Backend):
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def test_plotly_is_the_installed_one_and_is_kept_for_ever(http: httpx.Client):
    with http.stream("GET", "/static/plotly.min.js") as answer:
        packed = b"".join(answer.iter_raw())
    installed = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    assert gzip.decompress(packed) == installed.read_bytes()
    assert answer.headers["cache-control"] == "no-cache"
    version = answer.headers["etag"].removeprefix('W/"').removesuffix('"')
    kept = http.get(f"/static/plotly.min.js?v={version}")
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (
        http.get(
            "/static/plotly.min.js", headers={"If-None-Match": answer.headers["etag"]}
        ).status_code
        == 304
    )
    assert http.get("/static/..%2Fpages.py").status_code == 404
