"""Families over REST: the best rate and the losses."""

from __future__ import annotations

import httpx
import pytest

from tests.server.conftest import Backend
from tests.server.http.answers import recorded
from tests.server.samples import family


@pytest.fixture
def http(backend: Backend):
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


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
