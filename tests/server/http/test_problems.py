"""Errors over HTTP are problem documents."""

from __future__ import annotations

import uuid

import httpx
import pytest

from tests.server.conftest import Backend
from tests.server.http.answers import problem, recorded
from tests.server.samples import NAMES, family


@pytest.fixture
def http(backend: Backend):
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


def test_errors_are_problems_that_name_field_and_value(backend: Backend, http: httpx.Client):
    name = family()
    recording_id = recorded(backend, name)
    unknown = str(uuid.uuid4())
    assert unknown in problem(http.get(f"/api/v1/recordings/{unknown}"), 404)["detail"]
    assert "'none'" in problem(http.get("/api/v1/families/none"), 404)["detail"]
    assert "page_size" in problem(http.get("/api/v1/recordings?page_size=-1"), 422)["detail"]
    assert "page_token" in problem(http.get("/api/v1/recordings?page_token=x"), 422)["detail"]
    assert "tag: 'x'" in problem(http.get("/api/v1/recordings?tag=x"), 422)["detail"]
    assert (
        "'pdf'"
        in problem(http.get(f"/api/v1/recordings/{recording_id}/trajectory?format=pdf"), 406)[
            "detail"
        ]
    )
    picture = http.get(
        f"/api/v1/recordings/{recording_id}/trajectory", headers={"Accept": "image/png"}
    )
    assert "image/png" in problem(picture, 406)["detail"]
    assert (
        "'q*'"
        in problem(http.get(f"/api/v1/recordings/{recording_id}/trajectory?pattern=q*"), 404)[
            "detail"
        ]
    )
    assert (
        "0.5"
        in problem(http.get("/api/v1/targets", params={"family": name, "lr": 0.5}), 404)["detail"]
    )
    assert (
        "colour"
        in problem(http.post("/api/v1/targets", json={"family": name, "lr": 1, "colour": 1}), 422)[
            "detail"
        ]
    )
    assert "/api/v1/nothing" in problem(http.get("/api/v1/nothing"), 404)["detail"]
    assert problem(http.delete("/api/v1/recordings"), 405)["title"] == "Method Not Allowed"
    negative = http.post(
        "/api/v1/match", json={"family": name, "lr": 1e-3, "measured": {NAMES[0]: -1}}
    )
    assert f"-1.0 for '{NAMES[0]}'" in problem(negative, 422)["detail"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("recordings?familly=resmlp", "'familly': 'resmlp'"),
        ("recordings?family=a&family=b", "family: 'b'"),
        ("families/none/best?Role=scaled", "'Role': 'scaled'"),
        ("families/none/losses?role=base", "has none"),
        ("families?%E2%80%AEx=1", r"'\u202ex': '1'"),
        ("targets?lr=1&names=a", "block"),
    ],
)
def test_a_parameter_that_would_not_count_is_refused(http: httpx.Client, asked: str, named: str):
    assert named in problem(http.get(f"/api/v1/{asked}"), 422)["detail"]


def test_each_parameter_of_the_document_is_taken_and_lists_may_repeat(http: httpx.Client):
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        for each in methods.get("get", {}).get("parameters", []):
            if each["in"] == "query":
                repeated = [(each["name"], "")] * (1 + (each["schema"].get("type") == "array"))
                answer = http.get(path.format(name="none", recording_id="none"), params=repeated)
                assert "no such parameter" not in answer.text, answer.text
                assert "second value" not in answer.text, answer.text
