"""REST: what programs get over HTTP, from a real server on both databases."""

from __future__ import annotations

import csv
import io
import json
import uuid

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from flerm_core.records.recording import Ending
from tests.server.conftest import Backend
from tests.server.samples import NAMES, batch, family, row, rows, spec


@pytest.fixture
def http(backend: Backend):
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def recorded(
    backend: Backend, name: str, *, loss: float = 1.0, status: str = "completed", **changes
) -> str:
    """A recording of three rows that ended; its id."""
    sent = spec(name, **changes)
    backend.local.start(sent)
    backend.local.append_many(
        [batch(sent.id, row(1, 4, 2, np.nan, loss=2.5, tokens=64), *rows(101, 201))]
    )
    backend.local.finish(
        sent.id, 0, Ending(status=status, final_loss=None if status == "diverged" else loss)
    )
    return sent.id


def problem(answer: httpx.Response, status: int) -> dict:
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert answer.json()["status"] == status
    return answer.json()


def test_families_and_recordings_are_listed(backend: Backend, http: httpx.Client):
    name = family()
    ids = [
        recorded(backend, name, seed=seed, lr=lr, tags={"n": str(seed)})
        for seed, lr in ((0, 1e-3), (1, 1e-2), (2, 1e-3))
    ]
    found = http.get(f"/api/v1/families/{name}").json()
    assert (found["name"], found["recordings"], found["learning_rates"]) == (name, 3, [1e-3, 1e-2])
    assert [
        each["name"]
        for each in http.get("/api/v1/families", params={"prefix": name}).json()["families"]
    ] == [name]
    page = http.get("/api/v1/recordings", params={"family": name, "page_size": 2}).json()
    rest = http.get(
        "/api/v1/recordings", params={"family": name, "page_token": page["next_page_token"]}
    ).json()
    assert [each["id"] for each in page["recordings"] + rest["recordings"]] == ids[::-1]
    assert page["recordings"][0]["parameters"] is None
    assert rest["next_page_token"] == ""
    chosen = http.get(
        "/api/v1/recordings", params={"family": name, "lr_max": 2e-3, "tag": "n=2"}
    ).json()["recordings"]
    assert [each["id"] for each in chosen] == [ids[2]]


def test_one_recording_has_its_parameters(backend: Backend, http: httpx.Client):
    recording_id = recorded(backend, family())
    found = http.get(f"/api/v1/recordings/{recording_id}").json()
    assert (found["id"], found["status"], found["rows"], found["final_loss"]) == (
        recording_id,
        "completed",
        3,
        1.0,
    )
    assert found["parameters"][0] == {
        "name": "layers.0.weight",
        "shape": [4, 4],
        "band": "feed-forward",
    }


def test_a_trajectory_as_json(backend: Backend, http: httpx.Client):
    url = f"/api/v1/recordings/{recorded(backend, family())}/trajectory"
    found = http.get(url).json()
    assert found["names"] == list(NAMES)
    assert found["rows"][0] == {
        "step": 1,
        "loss": 2.5,
        "learning_rate": None,
        "tokens": 64,
        "values": [4, 2, None],
    }
    assert [each["step"] for each in found["rows"]] == [1, 101, 201]
    part = http.get(url, params={"pattern": "layers.*", "first_step": 101, "max_points": 1}).json()
    assert (part["names"], part["rows"][0]["step"], part["rows"][0]["values"]) == (
        list(NAMES[:2]),
        201,
        [201, 100.5],
    )


def test_a_row_has_its_further_scalars(backend: Backend, http: httpx.Client):
    sent = spec(family())
    backend.local.start(sent)
    backend.local.append_many(
        [batch(sent.id, row(1, 4, 2, 1, scalars={"sharpness": 2.5}), row(101, 4, 2, 1))]
    )
    first, second = http.get(f"/api/v1/recordings/{sent.id}/trajectory").json()["rows"]
    assert first["scalars"] == {"sharpness": 2.5}
    assert "scalars" not in second


def test_a_trajectory_as_csv(backend: Backend, http: httpx.Client):
    url = f"/api/v1/recordings/{recorded(backend, family())}/trajectory"
    answer = http.get(url, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert list(csv.reader(io.StringIO(answer.text))) == [
        ["step", "loss", "learning_rate", "tokens", *NAMES],
        ["1", "2.5", "", "64", "4", "2", ""],
        ["101", "", "", "", "101", "50.5", ""],
        ["201", "", "", "", "201", "100.5", ""],
    ]


def test_a_trajectory_as_parquet(backend: Backend, http: httpx.Client):
    recording_id = recorded(backend, family())
    answer = http.get(f"/api/v1/recordings/{recording_id}/trajectory?format=parquet")
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    table = pq.read_table(io.BytesIO(answer.content))
    assert table.to_pydict() == {
        "step": [1, 101, 201],
        "loss": [2.5, None, None],
        "learning_rate": [None, None, None],
        "tokens": [64, None, None],
        NAMES[0]: [4, 101, 201],
        NAMES[1]: [2, 50.5, 100.5],
        NAMES[2]: [None, None, None],
    }
    assert json.loads(table.schema.metadata[b"flerm"])["id"] == recording_id


def test_the_best_rate_and_the_losses(backend: Backend, http: httpx.Client):
    name = family()
    for lr, loss in ((1e-3, 2.0), (2e-3, 1.0), (4e-3, 2.0)):
        recorded(backend, name, lr=lr, loss=loss)
    recorded(backend, name, lr=8e-3, status="diverged")
    recorded(backend, name, lr=2e-3, loss=1.5, role="scaled", variant="matched")
    best = http.get(f"/api/v1/families/{name}/best").json()
    assert (best["lr"], best["loss"], best["optimum"], best["optimum_spread"]) == (
        2e-3,
        1.0,
        pytest.approx(2e-3),
        None,
    )
    assert best["points"][-1] == {
        "lr": 8e-3,
        "loss": None,
        "spread": None,
        "seeds": 0,
        "diverged": 1,
    }
    losses = http.get(f"/api/v1/families/{name}/losses").json()
    assert [(each["role"], each["variant"], len(each["points"])) for each in losses["curves"]] == [
        ("base", "plain", 4),
        ("scaled", "matched", 1),
    ]


def test_targets_by_get_and_post_are_the_same(backend: Backend, http: httpx.Client):
    name = family()
    recorded(backend, name, lr=1e-3)
    recorded(backend, name, lr=4e-3)
    by_get = http.get("/api/v1/targets", params={"family": name, "lr": 2e-3, "name": NAMES[:2]})
    by_post = http.post("/api/v1/targets", json={"family": name, "lr": 2e-3, "names": NAMES[:2]})
    assert by_get.json() == by_post.json()
    found = by_post.json()
    assert (found["names"], found["steps"], found["source_learning_rates"]) == (
        list(NAMES[:2]),
        [1, 101, 201],
        [1e-3, 4e-3],
    )
    np.testing.assert_allclose(found["values"][0], [4, 2], rtol=1e-6)
    assert found["spread"][0] == [None, None]


def test_match_turns_measured_fslrs_into_learning_rates(backend: Backend, http: httpx.Client):
    name = family()
    recorded(backend, name, lr=1e-3)
    measured = {NAMES[0]: 2.0, NAMES[1]: 8.0, NAMES[2]: None}
    found = http.post(
        "/api/v1/match", json={"family": name, "lr": 1e-3, "measured": measured}
    ).json()
    assert found["multipliers"] == {NAMES[0]: 2.0, NAMES[1]: 0.25, NAMES[2]: 1.0}
    assert found["learning_rates"] == {NAMES[0]: 2e-3, NAMES[1]: 2.5e-4, NAMES[2]: 1e-3}
    assert found["unmeasured"] == [NAMES[2]]


def test_errors_are_problems_that_name_field_and_value(backend: Backend, http: httpx.Client):
    name = family()
    recording_id = recorded(backend, name)
    unknown = str(uuid.uuid4())
    assert unknown in problem(http.get(f"/api/v1/recordings/{unknown}"), 404)["detail"]
    assert "'none'" in problem(http.get("/api/v1/families/none"), 404)["detail"]
    assert "page_size" in problem(http.get("/api/v1/recordings?page_size=-1"), 422)["detail"]
    assert "page_token" in problem(http.get("/api/v1/recordings?page_token=x"), 422)["detail"]
    assert "tag 'x'" in problem(http.get("/api/v1/recordings?tag=x"), 422)["detail"]
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


def test_health_and_metrics(backend: Backend, http: httpx.Client):
    assert http.get("/healthz").json()["status"] == "alive"
    assert http.get("/readyz").json()["schema_revision"] == "0004"
    sent = spec(family())
    backend.remote.start(sent)
    backend.remote.append_many([batch(sent.id, *rows(1, 2))])
    text = http.get("/metrics").text
    assert 'flerm_calls_total{code="OK",method="Append",protocol="grpc"}' in text
    assert 'flerm_calls_total{code="200",method="GET /readyz",protocol="http"}' in text
    assert "flerm_rows_committed_total" in text


def test_the_first_page_lists_families_and_recordings(backend: Backend, http: httpx.Client):
    name = family()
    backend.local.register_family(name, description="<script>alert(1)</script>")
    recording_id = recorded(backend, name)
    page = http.get("/", params={"family": name})
    assert page.headers["content-type"].startswith("text/html")
    assert recording_id in page.text
    assert "<script>" not in http.get("/").text
