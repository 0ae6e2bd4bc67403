"""Targets and matched learning rates over REST."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from flerm_server.http.api import targets as targets_api
from tests.server.conftest import Backend
from tests.server.http.answers import problem, recorded
from tests.server.samples import NAMES, family


@pytest.fixture
def http(backend: Backend):
    url = f"http://{backend.server.http_address.text}"
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


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


def test_a_match_of_another_batch_changes_rates_and_betas_and_says_so(
    backend: Backend, http: httpx.Client
):
    name, settings = family(), {"betas": [0.9, 0.5], "eps": 1e-8}
    recorded(backend, name, lr=1e-3, optimizer_config=settings, tags={"batch_size": "64"})
    measured = {NAMES[0]: 2.0, NAMES[1]: 8.0, NAMES[2]: None}
    asked = {"family": name, "lr": 1e-3, "measured": measured}

    def match(**more: int) -> dict:
        return http.post("/api/v1/match", json=asked | more).json()

    assert (
        http.post("/api/v1/targets", json={"family": name, "lr": 1e-3}).json()["batch_size"] == 64
    )
    alone = match()
    assert (alone["optimizer_config"], alone["remarks"]) == (settings, [])
    unknown = "A step of the base has 64 examples, and of this run the number is not known: "
    assert any(each.startswith(unknown) for each in alone["cautions"])
    found = match(batch_size=1024)
    assert not any(each.startswith(unknown) for each in found["cautions"])
    assert found["multipliers"] == {NAMES[0]: 2 * 2.0, NAMES[1]: 2 * 0.25, NAMES[2]: 2.0}
    assert found["learning_rates"] == {NAMES[0]: 4e-3, NAMES[1]: 5e-4, NAMES[2]: 2e-3}
    assert found["remarks"][0].startswith("batch size 1024 in 201 steps, where the base has 64 in")
    assert match(batch_size=64, total_steps=201 * 16)["multipliers"] == {
        NAMES[0]: 1.0,
        NAMES[1]: 0.125,
        NAMES[2]: 0.5,
    }
    alone = http.post("/api/v1/match", json=asked | {"total_steps": 5})
    assert problem(alone, 422)["detail"] == (
        "total_steps: 5 goes with a batch size; give both, or leave it out"
    )


def test_an_answer_of_many_targets_is_thinned_to_steps_of_the_base(
    backend: Backend, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    """Its first and last steps are the base's, and each of its rows is the base's at that step."""
    name = family()
    recorded(backend, name, lr=1e-3)
    asked = {"family": name, "lr": 1e-3, "names": NAMES[:2]}
    whole = http.post("/api/v1/targets", json=asked).json()
    monkeypatch.setattr(targets_api, "MAX_VALUES", 4)
    thinned = http.post("/api/v1/targets", json=asked).json()
    assert thinned["steps"] == [1, 201]
    assert thinned["values"] == [whole["values"][0], whole["values"][-1]]


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000"])
def test_a_name_that_no_database_can_hold_is_refused_by_name(http: httpx.Client, text: str):
    for route, more in (("targets", ""), ("match", ', "measured": {"a": 1}')):
        answer = http.post(
            f"/api/v1/{route}",
            content=f'{{"family": "{text}", "lr": 1e-3{more}}}',
            headers={"Content-Type": "application/json"},
        )
        assert problem(answer, 422)["detail"].startswith("family: ")
