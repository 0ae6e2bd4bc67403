"""Recordings over REST: lists, one recording, and trajectories in each format."""

from __future__ import annotations

import csv
import io
import json

import httpx
import pyarrow.parquet as pq
import pytest

from tests.server.conftest import Backend
from tests.server.http.answers import recorded
from tests.server.samples import NAMES, batch, family, row, spec


@pytest.fixture
def http(backend: Backend):
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


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
