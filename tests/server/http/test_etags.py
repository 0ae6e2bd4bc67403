"""Answers that a client or the server may keep."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from flerm_core.records.measurement_batch import MeasurementBatch
from flerm_core.records.recording import Ending, Measurement
from flerm_server.store.interface import Batch
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


def test_a_familys_page_and_figure_say_each_change_at_once(backend: Backend, http: httpx.Client):
    name, other = family(), family()
    first, second = spec(name, lr=1e-3), spec(name, lr=2e-3)
    local = backend.local
    names = len(first.parameters)

    def rows(step: int) -> Batch:
        values = np.ones(names, np.float32)
        return Batch(first.id, MeasurementBatch.of([Measurement(step=step, values=values)]))

    changes = [
        lambda: local.start(first),
        lambda: local.append_many([rows(1)]),
        lambda: local.append_many([rows(2)]),
        lambda: local.finish(first.id, 0, Ending(final_loss=0.5)),
        lambda: local.start(second),
        lambda: local.finish(second.id, 0, Ending(final_loss=0.25)),
        lambda: [
            local.tag(each.id, {"schedule": schedule})
            for each, schedule in ((first, "cosine"), (second, "constant"))
        ],
        lambda: local.register_family(name, description="what is compared"),
        lambda: local.delete(second.id),
    ]
    local.register_family(name)
    page, figure = f"/families/{name}", f"/api/v1/families/{name}/figure"
    before = {each: http.get(each).content for each in (page, figure)}
    drawn = 0
    for change in changes:
        change()
        for each in (page, figure):
            found = http.get(each)
            plain = http.get(each, headers={"Accept-Encoding": "identity"})
            assert (found.status_code, found.content) == (200, plain.content)
            assert (
                found.headers.get("content-encoding"),
                plain.headers.get("content-encoding"),
            ) == ("gzip", None)
            if each == page:
                assert found.content != before[page]
            else:
                drawn += found.content != before[figure]
            before[each] = found.content
    assert drawn == 3  # by each end, and by what was deleted
    local.rename_family(name, other)
    assert http.get(page).status_code == 404
    assert other in http.get(f"/families/{other}").text
