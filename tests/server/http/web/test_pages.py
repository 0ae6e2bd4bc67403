"""The pages without a browser: each renders for a registry that is empty, and for one that holds a sweep."""

from __future__ import annotations

from collections.abc import Iterator

import gallery
import httpx
import pytest

from tests.server.conftest import Backend, serve


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('pages')}/registry.db")


@pytest.fixture(scope="module")
def ids(backend: Backend) -> dict[str, str]:
    """The recordings of a sweep in the family `team/decoder`, by what they are."""
    return gallery.sweep(backend.local)


@pytest.fixture
def http(backend: Backend) -> Iterator[httpx.Client]:
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, headers={"Accept": "text/html"}, timeout=20) as client:
        yield client


def page(http: httpx.Client, path: str, **query: str) -> str:
    """The text of a page that must be there."""
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def test_a_family_shows_the_rate_its_coverage_and_its_recordings(
    http: httpx.Client, ids: dict[str, str]
):
    text = page(http, "/families/team/decoder")
    assert "Use 0.0038" in text
    assert "seed 0" in text
    assert f"/recordings/{ids['base']}" in text


def test_every_other_page_renders(http: httpx.Client, ids: dict[str, str]):
    assert "team/decoder" in page(http, "/")
    assert "Function-space learning rates" in page(http, f"/recordings/{ids['base']}")
    assert "FSLR over target" in page(http, "/compare", ids=f"{ids['base']},{ids['plain']}")
    assert "Nothing is chosen yet" in page(http, "/compare")
    match = {"family": "team/decoder", "lr": "0.004", "recording": ids["plain"]}
    assert "Or by hand" in page(http, "/match", **match)
    assert "openapi.json" in page(http, "/docs")
