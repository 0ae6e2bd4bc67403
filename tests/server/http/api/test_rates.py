"""The learning rates of a matched run over REST and by the client."""

from __future__ import annotations

import csv
import io

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from flerm_client import RegistryClient
from flerm_core.matching.targets import targets_digest
from flerm_server.store.interface import Store
from tests.server.conftest import Backend
from tests.server.http.answers import problem, recorded
from tests.server.samples import NAMES, PARAMETERS, batch, family, row, spec


@pytest.fixture
def http(backend: Backend):
    with httpx.Client(base_url=f"http://{backend.server.http_address.text}", timeout=20) as client:
        yield client


def matched(store: Store, name: str, base: str) -> str:
    """A run whose first two tensors moved the outputs four times and as far as in its base."""
    its = store.trajectory(base)
    sent = spec(
        name, seed=1, role="scaled", variant="matched", targets_sources=(base,),
        targets_digest=targets_digest(NAMES, its.steps, its.values),
    )  # fmt: skip
    store.start(sent)
    vectors = {"multiplier": np.array([0.25, 1, 1], np.float32)}
    more = {"learning_rate": 1e-3, "vectors": vectors}
    store.append_many(
        [batch(sent.id, row(1, 16, 2, np.nan, **more), row(101, 101, 101, np.nan, **more))]
    )
    return sent.id


def test_every_format_has_targets_fslrs_multipliers_and_rates(backend: Backend, http: httpx.Client):
    name = family()
    base = recorded(backend, name)
    address = f"/api/v1/recordings/{matched(backend.local, name, base)}/rates"
    found = http.get(address).json()
    assert (found["sources"], found["depth"], found["clock"]) == ([base], "coherent", "step")
    assert (found["steps"], found["match_step"]) == ([1, 101], 1)
    first, second, third = found["tensors"]
    assert (first["target"], first["fslr"], first["multiplier"]) == (
        [4, 101],
        [16, 101],
        [0.25] * 2,
    )
    assert (first["learning_rate"], first["ratio"]) == ([2.5e-4] * 2, [1, 0.25])
    assert (second["ratio"], third["note"], third["ratio"]) == ([1, 2], "unmeasured", [None, None])
    lines = list(csv.reader(io.StringIO(http.get(address, params={"format": "csv"}).text)))
    assert lines[1] == ["1", NAMES[0], PARAMETERS.bands[0], "4", "16", "0.25", "0.00025", "1", ""]
    assert len(lines) == 1 + 2 * 3
    table = pq.read_table(io.BytesIO(http.get(address, params={"format": "parquet"}).content))
    assert table.column_names == lines[0]
    assert table["ratio"].to_pylist() == [1, 1, None, 0.25, 2, None]
    one = http.get(address, params={"pattern": NAMES[1], "max_points": 2}).json()
    assert ([each["name"] for each in one["tensors"]], one["steps"]) == ([NAMES[1]], [1, 101])


def test_the_client_gives_the_same(backend: Backend):
    name = family()
    asked = matched(backend.local, name, recorded(backend, name))
    with RegistryClient(f"grpc://{backend.server.grpc_address.text}") as client:
        found = client.matched_rates(asked)
    assert found.ratios[:, :2].tolist() == [[1, 1], [0.25, 2]]


def test_a_run_that_was_not_matched_has_no_such_rates(backend: Backend, http: httpx.Client):
    base = recorded(backend, family())
    said = problem(http.get(f"/api/v1/recordings/{base}/rates"), 404)
    assert "has no multipliers: the run was not matched" in said["detail"]
