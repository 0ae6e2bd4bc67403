"""Answers that a client may keep."""

from __future__ import annotations

import httpx
import pytest

from flerm_core.records.recording import Ending
from tests.server.conftest import Backend, serve
from tests.server.samples import family, spec


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory):
    yield from serve(f"sqlite:///{tmp_path_factory.mktemp('http')}/registry.db")


@pytest.fixture
def http(backend: Backend):
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def test_what_was_kept_of_a_renamed_family_is_sent_anew(backend: Backend, http: httpx.Client):
    sent = spec(family())
    backend.local.start(sent)
    backend.local.finish(sent.id, 0, Ending(final_loss=0.5))
    kept = http.get(f"/api/v1/recordings/{sent.id}")
    name = family()
    backend.local.rename_family(sent.family, name)
    again = http.get(
        f"/api/v1/recordings/{sent.id}", headers={"If-None-Match": kept.headers["etag"]}
    )
    assert (again.status_code, again.json()["family"]) == (200, name)
